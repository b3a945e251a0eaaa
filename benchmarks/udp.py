"""What a datagram costs: UDPSocket against the sockets of trio, sending and receiving.

    python benchmarks/udp.py                           every case, about 2 minutes
    python benchmarks/udp.py --rounds 9 --size 1400 --seconds 1

The ways take turns, each in a process of its own that is pinned to one core. For one that receives,
a process on the other core floods its socket. One that sends does so to sockets that nobody reads:
the kernel drops what their buffers cannot take, and the cost of delivering over loopback is the
sender's. Figures: CPU time (user and system) of the measured process for one datagram, and
datagrams a second.

Rules of this file: a way is a coroutine that works until the time is up and returns how many
datagrams it has sent or received. Only datagrams of the right size are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import trio

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Way = Callable[[socket.socket, list[Any], int, float], Awaitable[int]]

SIZES = (64, 1400)
BATCH = 640  # datagrams of one send_many
DESTINATIONS = 8
SEGMENTED_MAX = 60_000  # bytes of the flood's messages
UDP_SEGMENT = 103
RECEIVE_BUFFER = 4 << 20


# -- receiving


async def trio_recvfrom(sock: socket.socket, _: list[Any], size: int, until: float) -> int:
    receiver, count = trio.socket.from_stdlib_socket(sock), 0
    while time.perf_counter() < until:
        payload, _address = await receiver.recvfrom(65535)
        count += len(payload) == size
    return count


async def receive_from(sock: socket.socket, _: list[Any], size: int, until: float) -> int:
    receiver, count = trio_uring.UDPSocket(sock), 0
    while time.perf_counter() < until:
        payload, _address = await receiver.receive_from()
        count += len(payload) == size
    await receiver.aclose()
    return count


async def receive_many(
    sock: socket.socket, _: list[Any], size: int, until: float, gro: bool = False
) -> int:
    receiver, count = trio_uring.UDPSocket(sock, gro=gro), 0
    while time.perf_counter() < until:
        count += sum(len(payload) == size for payload, _address in await receiver.receive_many())
    await receiver.aclose()
    return count


async def receive_many_gro(sock: socket.socket, to: list[Any], size: int, until: float) -> int:
    return await receive_many(sock, to, size, until, True)


# -- sending


async def trio_sendto(sock: socket.socket, to: list[Any], size: int, until: float) -> int:
    sender, payload, count = trio.socket.from_stdlib_socket(sock), bytes(size), 0
    while time.perf_counter() < until:
        for index in range(BATCH):
            await sender.sendto(payload, to[index % len(to)])
        count += BATCH
    return count


async def send_to(sock: socket.socket, to: list[Any], size: int, until: float) -> int:
    sender, payload, count = trio_uring.UDPSocket(sock), bytes(size), 0
    while time.perf_counter() < until:
        for index in range(BATCH):
            await sender.send_to(payload, to[index % len(to)])
        count += BATCH
    await sender.aclose()
    return count


async def send_many(sock: socket.socket, to: list[Any], size: int, until: float) -> int:
    sender, payload, count = trio_uring.UDPSocket(sock), bytes(size), 0
    datagrams = [(payload, to[index % len(to)]) for index in range(BATCH)]
    while time.perf_counter() < until:
        count += await sender.send_many(datagrams)
    await sender.aclose()
    return count


RECEIVING: dict[str, Way] = {
    "trio recvfrom": trio_recvfrom,
    "receive_from": receive_from,
    "receive_many, gro=False": receive_many,
    "receive_many": receive_many_gro,
}
SENDING: dict[str, Way] = {"trio sendto": trio_sendto, "send_to": send_to, "send_many": send_many}


# -- the two processes


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bound(buffer: int = RECEIVE_BUFFER) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.bind(("127.0.0.1", 0))
    return sock


def flood(port: int, size: int, core: int) -> None:
    """Sends as fast as it can until it is killed, or its parent is gone."""
    os.sched_setaffinity(0, {core})
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", port))
    data = bytes(size) * min(64, SEGMENTED_MAX // size)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    parent = os.getppid()
    while os.getppid() == parent:
        with contextlib.suppress(ConnectionRefusedError):
            sock.sendmsg([data], control)


def child(
    name: str, size: int, destinations: int, seconds: float, core: int, other_core: int
) -> None:
    os.sched_setaffinity(0, {core})
    sock, peers, flooding = bound(), [], None
    if name in RECEIVING:
        port = sock.getsockname()[1]
        flooding = subprocess.Popen(
            [sys.executable, __file__, "--flood", str(port), str(size), str(other_core)]
        )
    else:
        peers = [bound(2304) for _ in range(destinations)]
    to = [peer.getsockname() for peer in peers]
    way = (RECEIVING | SENDING)[name]

    async def main() -> tuple[float, float]:
        # Warm up.
        await way(
            socket.socket(fileno=os.dup(sock.fileno())), to, size, time.perf_counter() + seconds / 5
        )
        before, start = cpu_seconds(), time.perf_counter()
        count = await way(socket.socket(fileno=os.dup(sock.fileno())), to, size, start + seconds)
        return (cpu_seconds() - before) / count, count / (time.perf_counter() - start)

    try:
        print(*trio.run(main))
    finally:
        if flooding is not None:
            flooding.kill()
            flooding.wait()


def measure(name: str, *arguments: object) -> tuple[float, float]:
    """One run in a process of its own: CPU seconds a datagram, datagrams a second."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", name, *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    cpu, rate = map(float, done.stdout.split())
    return cpu, rate


def report(title: str, ways: dict[str, Way], rounds: int, *arguments: object) -> None:
    print(f"\n{title}")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name in ways:
            figures[name].append(measure(name, *arguments))
    baseline = next(iter(figures.values()))
    for name, values in figures.items():
        ratios = sorted(base[0] / value[0] for base, value in zip(baseline, values))
        cpu = statistics.median(value[0] for value in values) * 1e6
        rate = statistics.median(value[1] for value in values)
        spread = f"[{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        print(
            f"  {name:24} {cpu:7.2f} us   {rate:11,.0f}/s   "
            f"{statistics.median(ratios):6.2f}x {spread}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--flood"]:
        flood(*map(int, sys.argv[2:5]))
    elif sys.argv[1:2] == ["--child"]:
        child(
            sys.argv[2],
            int(sys.argv[3]),
            int(sys.argv[4]),
            float(sys.argv[5]),
            int(sys.argv[6]),
            int(sys.argv[7]),
        )
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--seconds", type=float, default=0.5, help="seconds of one run")
        parser.add_argument(
            "--size", type=int, action="append", help="bytes of a datagram; default 64 and 1400"
        )
        arguments = parser.parse_args()
        cores = sorted(os.sched_getaffinity(0))
        for size in arguments.size or SIZES:
            rest = (arguments.seconds, cores[0], cores[-1])
            report(f"receiving {size} bytes", RECEIVING, arguments.rounds, size, 0, *rest)
            report(f"sending {size} bytes to one", SENDING, arguments.rounds, size, 1, *rest)
            report(
                f"sending {size} bytes to {DESTINATIONS} in turn",
                SENDING,
                arguments.rounds,
                size,
                DESTINATIONS,
                *rest,
            )


if __name__ == "__main__":
    main()
