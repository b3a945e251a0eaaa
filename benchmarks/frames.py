"""What sending a frame costs: prefix and payload in one vectored operation, joined, or sent one
after the other.

    python benchmarks/frames.py                       every case, about 2 minutes
    python benchmarks/frames.py --rounds 9 --case 4096 --connections 16

For each case the ways to send take turns, each in a process of its own (trio's streams are not to
run beside the ring's hooks) that is pinned to one core; a process on the other core receives
everything and throws it away. The figure is CPU time (user and system, of the sending process
alone) for one frame.

Rules of this file: a way is a coroutine that sends `count` frames on one stream; the connections of
a case share them. Nothing is sent that the sink does not count: a way that sends less, or more,
fails.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import trio

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIZES = (64, 4096, 65536, 2**20)
MANY = 1000  # frames of one send_many
MANY_SIZE = 64
BYTES_A_ROUND = 2**28  # of large frames; small ones are bound by FRAMES_A_ROUND
FRAMES_A_ROUND = 40_000
PREFIX = struct.Struct(">I")
SINK_BUFFER = 2**20  # bytes


async def vectored(stream: Any, payload: bytes, count: int) -> None:
    for _ in range(count):
        await trio_uring.send_frame(stream, payload, 2**20)


async def joined(stream: Any, payload: bytes, count: int) -> None:
    for _ in range(count):
        await stream.send_all(PREFIX.pack(len(payload)) + payload)


async def two_sends(stream: Any, payload: bytes, count: int) -> None:
    for _ in range(count):
        await stream.send_all(PREFIX.pack(len(payload)))
        await stream.send_all(payload)


async def channel(stream: Any, payload: bytes, count: int) -> None:
    frames = trio_uring.FrameStream(stream)
    for _ in range(count):
        await frames.send(payload)


async def many(stream: Any, payload: bytes, count: int) -> None:
    frames = trio_uring.FrameStream(stream)
    for _ in range(count // MANY):
        await frames.send_many([payload] * MANY)


Way = tuple[str, "Callable[[Any, bytes, int], Awaitable[None]]"]
WAYS: dict[str, Way] = {
    "send_frame, ring": ("uring", vectored),
    "joined, ring": ("uring", joined),
    "two sends, ring": ("uring", two_sends),
    "send_frame, trio": ("trio", vectored),
    "joined, trio": ("trio", joined),
    "two sends, trio": ("trio", two_sends),
}
WAYS_OF_MANY: dict[str, Way] = {
    "send_many, ring": ("uring", many),
    "sends, ring": ("uring", channel),
    "send_many, trio": ("trio", many),
    "sends, trio": ("trio", channel),
    "joined, trio": ("trio", joined),
}
BASELINE = "joined, trio"


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def sink(descriptor: int, core: int) -> None:
    """Receives from every connection that comes, and says how many bytes each time that all of them
    have ended."""
    os.sched_setaffinity(0, {core})
    listener = socket.socket(fileno=descriptor)
    buffer = bytearray(SINK_BUFFER)

    async def drain(stream: trio.SocketStream) -> None:
        while count := await stream.socket.recv_into(buffer):
            received[0] += count

    async def main() -> None:
        while True:
            received[0] = 0
            connections = int(sys.stdin.readline())
            async with trio.open_nursery() as nursery:
                for _ in range(connections):
                    nursery.start_soon(
                        drain,
                        trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0])),
                    )
            print(received[0], flush=True)

    received = [0]
    trio.run(main)


async def send(
    network: trio_uring.Network | None, way: Way, port: int, size: int, count: int, connections: int
) -> float:
    """Sends `count` frames over `connections` streams; returns CPU seconds for each frame."""
    payload = bytes(size)
    opener: Any = trio_uring.open_tcp_stream if way[0] == "uring" else trio.open_tcp_stream
    streams = [await opener("127.0.0.1", port) for _ in range(connections)]
    share = count // connections
    for stream in streams:
        await way[1](stream, payload, max(MANY if way[1] is many else 1, share // 20))  # warm up
    before = cpu_seconds()
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(way[1], stream, payload, share)
    used = cpu_seconds() - before
    for stream in streams:
        await stream.aclose()
    return used / (share * connections)


def measure(name: str, port: int, size: int, connections: int, core: int, is_many: bool) -> float:
    """One run in a process of its own."""
    arguments = [str(port), str(size), str(connections), str(core), "many" if is_many else "one"]
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return float(done.stdout)


def child(name: str, port: int, size: int, connections: int, core: int, is_many: bool) -> None:
    os.sched_setaffinity(0, {core})
    way = (WAYS_OF_MANY if is_many else WAYS)[name]
    count = max(64, min(FRAMES_A_ROUND, BYTES_A_ROUND // size))
    print(trio.run(send, None, way, port, size, count, connections))


def run_case(size: int, connections: int, rounds: int, is_many: bool) -> dict[str, list[float]]:
    ways = WAYS_OF_MANY if is_many else WAYS
    cores = sorted(os.sched_getaffinity(0))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    receiver = subprocess.Popen(
        [sys.executable, __file__, "--sink", str(listener.fileno()), str(cores[-1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[listener.fileno()],
    )  # fmt: skip
    figures: dict[str, list[float]] = {name: [] for name in ways}
    try:
        assert receiver.stdin
        assert receiver.stdout
        for _ in range(rounds):
            for name in ways:
                receiver.stdin.write(f"{connections}\n")
                receiver.stdin.flush()
                figures[name].append(measure(name, port, size, connections, cores[0], is_many))
                received = int(receiver.stdout.readline())
                if received % (size + PREFIX.size):
                    raise SystemExit(f"{name}: {received} bytes are no whole number of frames")
    finally:
        receiver.kill()
        receiver.wait()
        listener.close()
    return figures


def report(title: str, figures: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    baseline = figures[BASELINE]
    for name, values in figures.items():
        ratios = sorted(base / value for base, value in zip(baseline, values))
        spread = f"[{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        micros = statistics.median(values) * 1e6
        print(f"  {name:18} {micros:9.2f} us/frame   {statistics.median(ratios):5.2f}x {spread}")


def main() -> None:
    if sys.argv[1:2] == ["--sink"]:
        sink(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *map(int, sys.argv[3:7]), sys.argv[7] == "many")
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument(
            "--case",
            type=int,
            action="append",
            choices=SIZES,
            help="bytes of a frame; 0 rounds of others",
        )
        parser.add_argument(
            "--connections",
            type=int,
            action="append",
            help="streams that send at once; default 1 and 16",
        )
        parser.add_argument("--no-many", action="store_true")
        arguments = parser.parse_args()
        for connections in arguments.connections or (1, 16):
            print(
                f"== {connections} connection{'s' * (connections > 1)}; "
                f"ratio: CPU of '{BASELINE}' / CPU, more is better"
            )
            for size in arguments.case or SIZES:
                report(
                    f"{size:,} bytes a frame", run_case(size, connections, arguments.rounds, False)
                )
            if not arguments.no_many:
                title = f"{MANY:,} frames of {MANY_SIZE} bytes at a time"
                report(title, run_case(MANY_SIZE, connections, arguments.rounds, True))


if __name__ == "__main__":
    main()
