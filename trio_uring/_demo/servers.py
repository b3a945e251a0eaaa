"""The servers of the acts, each in a process of its own: so its CPU time is its alone.

    python -m trio_uring._demo.servers ACT STACK CPU

STACK is trio_uring or trio. It prints {"port": ...}, and then answers each line of its standard
input with {"cpu": ...}, the seconds of CPU time that it has used since it answered the line before.
It ends when its standard input does.

Rules of this file: the two stacks run the same code but where trio lacks what is shown; there, the
code on trio is the best that its user can write.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import sysconfig
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import trio_uring

from .children import prepare
from .files import STACKS, File, Server, scan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPBACK = "127.0.0.1"
LOOP_BYTES = 65536  # what trio's streams receive at most, unless they are told otherwise
DATAGRAM_BYTES_MAX = 65_507
PORT = struct.Struct("!H")  # the first bytes of a client of the proxy: where it wants to be
LIBRARY_BYTES_MAX = 2**24


async def _serve(
    nursery: trio.Nursery,
    handler: Callable[[Any], Awaitable[None]],
    serve_tcp: Callable[..., Any] = trio.serve_tcp,
) -> int:
    """Serves TCP clients, who may hang up whenever they like."""

    async def polite(stream: Any) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)

    listeners = await nursery.start(partial(serve_tcp, polite, 0, host=LOOPBACK))
    port: int = listeners[0].socket.getsockname()[1]
    return port


def library() -> tuple[Path, list[File]]:
    """Files that every machine has: a directory, and what of it is served."""
    directory = Path(sysconfig.get_path("stdlib"))
    return directory, scan(directory, (".py",), LIBRARY_BYTES_MAX)


# -- the acts


async def echo(nursery: trio.Nursery, stack: str) -> int:
    async def handler(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    return await _serve(nursery, handler)


async def files(nursery: trio.Nursery, stack: str) -> int:
    server = Server(STACKS[stack], *library())
    # With TRIO_URING_BACKEND=off, trio's would not take a list.
    ours = stack == "trio_uring"
    return await _serve(
        nursery, server.serve_client, trio_uring.serve_tcp if ours else trio.serve_tcp
    )


async def relay(nursery: trio.Nursery, stack: str) -> int:
    way = trio_uring.relay if stack == "trio_uring" else _relay_by_hand

    async def handler(client: trio.SocketStream) -> None:
        wanted = b""
        while len(wanted) < PORT.size:
            if not (chunk := await client.receive_some(PORT.size - len(wanted))):
                return
            wanted += chunk
        async with await trio.open_tcp_stream(LOOPBACK, *PORT.unpack(wanted)) as server:
            await way(client, server)

    return await _serve(nursery, handler)


async def _relay_by_hand(left: Any, right: Any) -> None:
    async def copy(source: Any, sink: Any) -> None:
        while chunk := await source.receive_some(LOOP_BYTES):
            await sink.send_all(chunk)
        await sink.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, left, right)
        nursery.start_soon(copy, right, left)


async def udp(nursery: trio.Nursery, stack: str) -> int:
    if stack == "trio_uring":
        ours = await trio_uring.open_udp_socket(local_address=(LOOPBACK, 0))
        nursery.start_soon(_echo_many, ours)
        port: int = ours.getsockname()[1]
        return port
    theirs = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await theirs.bind((LOOPBACK, 0))
    nursery.start_soon(_echo_each, theirs)
    port = theirs.getsockname()[1]
    return port


async def _echo_many(sock: trio_uring.UDPSocket) -> None:
    while True:
        await sock.send_many(await sock.receive_many())


async def _echo_each(sock: trio.socket.SocketType) -> None:
    while True:
        data, address = await sock.recvfrom(DATAGRAM_BYTES_MAX)
        await sock.sendto(data, address)


SERVERS = {"echo": echo, "files": files, "relay": relay, "udp": udp}


# -- the process


def _answer() -> None:
    """Answers until the standard input ends; in a thread, because Windows cannot wait for it in
    another way."""
    used = time.process_time()
    for _ in sys.stdin:
        now = time.process_time()
        print(json.dumps({"cpu": now - used}), flush=True)
        used = time.process_time()


async def main(act: str, stack: str) -> None:
    async with trio.open_nursery() as nursery:
        print(json.dumps({"port": await SERVERS[act](nursery, stack)}), flush=True)
        await trio.to_thread.run_sync(_answer)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    prepare(int(sys.argv[3]))
    (trio_uring.run if sys.argv[2] == "trio_uring" else trio.run)(main, sys.argv[1], sys.argv[2])
