"""The servers of trio's family: `python trio_server.py LIBRARY MODE COUNT SIZE`.

LIBRARY is the module that `serve_tcp` comes from: trio or trio_uring. MODE is what is done for a
connection; COUNT is how many buffers or frames an answer has, of SIZE bytes each.

Rules of this file: both libraries run the same handlers; only what a library does not have is done
in another way, and then in the best way that it has.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN = 0
OTHERS = {  # modules, by mode
    "relay": "trio_relay", "udp": "trio_udp", "udp-many": "trio_udp",
    "cancel": "trio_cancel",
    "hypercorn": "trio_programs", "websockets": "trio_programs",
}  # fmt: skip
FRAME_MAX = 64 << 20
SCOPE_SECONDS = 60.0  # of a timeout that never fires
PREFIX = struct.Struct(">I")
FILE_CHUNK_BYTES = 65536
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
    buffer = bytearray()
    while data := await stream.receive_some():
        buffer += data
        while len(buffer) >= PREFIX.size:
            end = PREFIX.size + PREFIX.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            payload = bytes(buffer[PREFIX.size : end])
            del buffer[:end]
            await stream.send_all(PREFIX.pack(len(payload)) + payload)


async def send_frames(stream: Any, payload: bytes, count: int) -> None:
    send_frame = importlib.import_module("trio_uring").send_frame
    while await stream.receive_some():
        for _ in range(count):
            await send_frame(stream, payload, FRAME_MAX)


async def send_frames_joined(stream: Any, payload: bytes, count: int) -> None:
    while await stream.receive_some():
        for _ in range(count):
            await stream.send_all(PREFIX.pack(len(payload)) + payload)


async def send_frames_twice(stream: Any, payload: bytes, count: int) -> None:
    while await stream.receive_some():
        for _ in range(count):
            await stream.send_all(PREFIX.pack(len(payload)))
            await stream.send_all(payload)


@contextlib.contextmanager
def file_of(size: int) -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(size))
        file.flush()
        yield file  # it has just been written, so it is in the page cache


async def send_files(stream: Any, size: int) -> None:
    send_file = importlib.import_module("trio_uring").send_file
    with file_of(size) as file:
        while await stream.receive_some():
            file.seek(0)
            await send_file(stream, file)


async def send_files_by_hand(stream: Any, size: int) -> None:
    with file_of(size) as file:
        while await stream.receive_some():
            file.seek(0)
            while chunk := file.read(FILE_CHUNK_BYTES):
                await stream.send_all(chunk)


async def echo_over_tls(stream: Any, context: Any) -> None:
    await echo(trio.SSLStream(stream, context, server_side=True))


async def send_many_frames(stream: Any, payload: bytes, count: int) -> None:
    frames = importlib.import_module("trio_uring").FrameStream(stream, max_size=FRAME_MAX)
    while await stream.receive_some():
        await frames.send_many([payload] * count)


def handler_of(library: str, mode: str, count: int, size: int) -> Any:
    """What is done with a stream."""
    ours, payload = library == "trio_uring", bytes(size)
    buffers = [payload] * count
    context: Any = None
    if mode == "tls":
        context = importlib.import_module("certificate").server_context()
    # ours, trio's, what they need to know
    modes: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
        "echo": (echo, echo, ()),
        "scopes": (echo_in_scopes, echo_in_scopes, ()),
        "frames": (echo_frames, echo_frames_by_hand, ()),
        "in": (take_in, take_in, ()),
        "out": (give_out, give_out, ()),
        "list": (answer_list, answer_joined, (buffers,)),
        "send-frame": (send_frames, send_frames_joined, (payload, count)),
        "send-joined": (send_frames_joined, send_frames_joined, (payload, count)),
        "send-twice": (send_frames_twice, send_frames_twice, (payload, count)),
        "send-file": (send_files, send_files_by_hand, (size,)),
        "tls": (echo_over_tls, echo_over_tls, (context,)),
        "send-many": (send_many_frames, send_frames_joined, (payload, count)),
    }
    our_way, trios_way, rest = modes[mode]
    way = our_way if ours else trios_way

    async def handler(stream: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the load has closed
            await way(stream, *rest)

    return handler


async def serve_streams(
    nursery: trio.Nursery, library: str, mode: str, count: int, size: int
) -> int:
    """Returns the port."""
    serve_tcp = importlib.import_module(library).serve_tcp
    handler = handler_of(library, mode, count, size)
    listeners = await nursery.start(partial(serve_tcp, handler, 0, host="127.0.0.1"))
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def main(library: str, mode: str, count: int, size: int) -> None:
    # What is no handler of a stream is in a module of its own, beside this program.
    other = OTHERS.get(mode)
    serve = importlib.import_module(other).serve if other else serve_streams
    async with trio.open_nursery() as nursery:
        print(await serve(nursery, library, mode, count, size), flush=True)
        while True:
            await trio.lowlevel.wait_readable(STDIN)
            if not os.read(STDIN, 4096):
                break
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # Whole programs know nothing of the library: for them, all of trio is what differs.
    whole = OTHERS.get(sys.argv[2]) == "trio_programs"
    run = importlib.import_module(sys.argv[1] if whole else "trio").run
    run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
