"""The mode `cancel` of trio's family: COUNT blocked receives that are cancelled together.

Rules of this file: the first COUNT connections are those that are received from; the next one
sends a byte for each time that this is to be done, and is answered by a line: nanoseconds of CPU
time for each receive, from the cancelling until all tasks have ended.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import trio
import trio.testing

SETTLE_SECONDS = 0.05  # without a task that runs: all of them wait in the kernel by then


async def cancel_all(streams: list[Any]) -> float:
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked(SETTLE_SECONDS)
        began = time.process_time_ns()
        nursery.cancel_scope.cancel()
    return (time.process_time_ns() - began) / len(streams)


async def serve_requests(listener: Any, count: int) -> None:
    streams = [await listener.accept() for _ in range(count)]
    requester = await listener.accept()
    while await requester.receive_some(1):
        await requester.send_all(f"{await cancel_all(streams)}\n".encode())


async def serve(nursery: trio.Nursery, library: str, mode: str, count: int, size: int) -> int:
    """Returns the port."""
    open_listeners = importlib.import_module(library).open_tcp_listeners
    [listener] = await open_listeners(0, host="127.0.0.1")
    nursery.start_soon(serve_requests, listener, count)
    port: int = listener.socket.getsockname()[1]
    return port
