"""CPU of a ping-pong between two processes on one core: a server and a client of the same kind, one
connection.

    python benchmarks/pingpong.py [--rounds 15] [--messages 3000] [--bytes 1024]

Rules of this file: both processes are pinned to one core, so that no idle state is in the figure;
what is counted is the CPU time of both, by the scheduler's own clock; the kinds take turns, and the
minimum of many short rounds is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

import trio_uring

KINDS = {
    "trio": lambda sock: trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
    "trio_uring": trio_uring.SocketStream,
}


def cpu_seconds(pid: int) -> float:
    """On the processor so far, of the first thread, which does the work."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def serve(stream: Any) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def ask(stream: Any, server: int, options: argparse.Namespace) -> float:
    """Seconds of CPU for one message there and back."""
    message, best = bytes(options.bytes), float("inf")
    async with stream:
        for _ in range(options.rounds):
            began = cpu_seconds(server) + cpu_seconds(os.getpid())
            for _ in range(options.messages):
                await stream.send_all(message)
                got = 0
                while got < options.bytes:
                    got += len(await stream.receive_some())
            best = min(best, cpu_seconds(server) + cpu_seconds(os.getpid()) - began)
    return best / options.messages


async def make_and(use: Any, kind: str, sock: socket.socket, *arguments: Any) -> Any:
    return await use(KINDS[kind](sock), *arguments)


def measure(kind: str, options: argparse.Namespace) -> None:
    """In a process of its own: prints the microseconds of CPU for one message there and back."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    server = os.fork()
    if not server:
        ours.close()
        trio.run(make_and, serve, kind, theirs)
        os._exit(0)
    theirs.close()
    print(trio.run(make_and, ask, kind, ours, server, options) * 1e6)
    os.waitpid(server, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="short rounds in each process")
    parser.add_argument("--messages", type=int, default=3000, help="messages in each round")
    parser.add_argument("--bytes", type=int, default=1024, help="size of a message")
    parser.add_argument("--turns", type=int, default=3, help="processes of each kind, taking turns")
    parser.add_argument("--kind", choices=sorted(KINDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        measure(options.kind, options)
        return
    found: dict[str, float] = {}
    for _ in range(options.turns):
        for kind in KINDS:
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
            value = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            found[kind] = min(value, found.get(kind, value))
    for kind, value in found.items():
        print(
            f"{kind:12} {value:6.1f} us CPU of both processes for a message there and back, "
            f"{value / found['trio']:.2f}"
        )


if __name__ == "__main__":
    main()
