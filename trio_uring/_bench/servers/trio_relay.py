"""The mode `relay` of trio's family: what comes in on one connection goes out on another.

Rules of this file: connections are paired in the order in which they come, by one task that accepts
them.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import trio

LOOP_BYTES = 65536  # what trio.SocketStream.receive_some asks for by default


async def copy(source: Any, sink: Any) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while chunk := await source.receive_some(LOOP_BYTES):
            await sink.send_all(chunk)
        await sink.send_eof()


async def relay_by_hand(left: Any, right: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, left, right)
        nursery.start_soon(copy, right, left)


async def relay(library: str, left: Any, right: Any) -> None:
    way = importlib.import_module(library).relay if library == "trio_uring" else relay_by_hand
    async with left, right:
        with contextlib.suppress(trio.BrokenResourceError):  # the load has closed
            await way(left, right)


async def accept(nursery: trio.Nursery, library: str, listener: Any) -> None:
    while True:
        left, right = await listener.accept(), await listener.accept()
        nursery.start_soon(relay, library, left, right)


async def serve(nursery: trio.Nursery, library: str, mode: str, count: int, size: int) -> int:
    """Returns the port."""
    open_listeners = importlib.import_module(library).open_tcp_listeners
    [listener] = await open_listeners(0, host="127.0.0.1")
    nursery.start_soon(accept, nursery, library, listener)
    port: int = listener.socket.getsockname()[1]
    return port
