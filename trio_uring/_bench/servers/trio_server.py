"""The servers of trio's family: `python trio_server.py LIBRARY MODE [COUNT]`.

LIBRARY is the module that `serve_tcp` comes from: trio or trio_uring. MODE is what is done for a
connection; COUNT is how many buffers an answer of the mode `list` has.

Rules of this file: both libraries run the same handlers; only what a library does not have is done
in another way, and then in the best way that it has.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
import sys
from functools import partial
from typing import Any

import trio

STDIN = 0
FRAME_MAX = 64 << 20
SCOPE_SECONDS = 60.0  # of a timeout that never fires
PIECE = bytes(64)  # a buffer of the mode `list`
CHUNK = bytes(65536)  # what the mode `out` sends at a time


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def echo_in_scopes(stream: Any) -> None:
    data = b""
    while True:
        with trio.move_on_after(SCOPE_SECONDS):
            data = await stream.receive_some()
        if not data:
            return
        with trio.move_on_after(SCOPE_SECONDS):
            await stream.send_all(data)


async def take_in(stream: Any) -> None:
    while await stream.receive_some():
        pass


async def give_out(stream: Any) -> None:
    while True:
        await stream.send_all(CHUNK)


async def answer_list(stream: Any, buffers: list[bytes]) -> None:
    while await stream.receive_some():
        await stream.send_all(buffers)


async def answer_joined(stream: Any, buffers: list[bytes]) -> None:
    while await stream.receive_some():
        await stream.send_all(b"".join(buffers))


async def echo_frames(stream: Any) -> None:
    frames = importlib.import_module("trio_uring").FrameStream(stream, max_size=FRAME_MAX)
    async for payload in frames:
        await frames.send(payload)


async def echo_frames_by_hand(stream: Any) -> None:
    buffer, prefix = bytearray(), struct.Struct(">I")
    while data := await stream.receive_some():
        buffer += data
        while len(buffer) >= prefix.size:
            end = prefix.size + prefix.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            payload = bytes(buffer[prefix.size : end])
            del buffer[:end]
            await stream.send_all(prefix.pack(len(payload)) + payload)


async def handle(mode: Any, stream: Any) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # the load has closed
        await mode(stream)


async def main(library: str, mode: str, count: int) -> None:
    handlers = {
        "echo": echo,
        "scopes": echo_in_scopes,
        "frames": echo_frames_by_hand if library == "trio" else echo_frames,
        "in": take_in,
        "out": give_out,
        "list": partial(
            answer_joined if library == "trio" else answer_list, buffers=[PIECE] * count
        ),
    }
    serve_tcp = importlib.import_module(library).serve_tcp
    handler = partial(handle, handlers[mode])
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(serve_tcp, handler, 0, host="127.0.0.1"))
        print(listeners[0].socket.getsockname()[1], flush=True)
        while True:
            await trio.lowlevel.wait_readable(STDIN)
            if not os.read(STDIN, 4096):
                break
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 1)
