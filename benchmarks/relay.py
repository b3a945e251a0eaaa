"""What it costs to move bytes between two connections, or from a file: trio_uring's relay and
send_file against a Python loop.

    python benchmarks/relay.py                                  every case, about 3 minutes
    python benchmarks/relay.py --case bulk --rounds 9

The ways take turns, each in a process of its own that is pinned to one core. On the other core a
process talks to it: for `bulk` it sends as fast as it can into one end of the relay and drains the
other; for `messages` it sends 1 KiB on each of 50 relayed connections and waits for it to come out
before it sends the next; for `file` it drains. The figures are CPU time (user and system) of the
relaying process alone, for each MiB or each message, and the throughput.

Rules of this file: a way is a coroutine with the same job; a case fails if not every byte came out.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import trio

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 2**20
BULK = 512 * MIB
BULK_WRITE = 2**18  # bytes of one send of the source
FILE = 256 * MIB
FILE_TIMES = 2
MESSAGES = 60_000
MESSAGE = 1024
CONNECTIONS = 50
LOOP_SIZE = 65536  # what trio.SocketStream.receive_some asks for by default


# -- the ways: relays of pairs of sockets, senders of a file


async def loop(source: Any, sink: Any) -> None:
    while chunk := await source.receive_some(LOOP_SIZE):
        await sink.send_all(chunk)
    await sink.send_eof()


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def both_ways(a: Any, b: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop, a, b)
        nursery.start_soon(loop, b, a)


async def relay_loop_trio(left: socket.socket, right: socket.socket) -> None:
    await both_ways(trio_stream(left), trio_stream(right))


async def relay_loop_ring(left: socket.socket, right: socket.socket) -> None:
    await both_ways(trio_uring.SocketStream(left), trio_uring.SocketStream(right))


async def relay_ring(left: socket.socket, right: socket.socket) -> None:
    await trio_uring.relay(trio_uring.SocketStream(left), trio_uring.SocketStream(right))


async def file_loop_trio(sock: socket.socket, file: Any) -> None:
    stream = trio_stream(sock)
    file.seek(0)
    while chunk := file.read(LOOP_SIZE):
        await stream.send_all(chunk)


async def file_ring(sock: socket.socket, file: Any) -> None:
    await trio_uring.send_file(trio_uring.SocketStream(sock), file)


RELAYS: dict[str, Callable[[socket.socket, socket.socket], Awaitable[None]]] = {
    "relay, ring": relay_ring,
    "loop, ring": relay_loop_ring,
    "loop, trio": relay_loop_trio,
}
FILES: dict[str, Callable[[socket.socket, Any], Awaitable[None]]] = {
    "send_file, ring": file_ring,
    "loop, trio": file_loop_trio,
}
BASELINE = "loop, trio"
CASES = {"bulk": RELAYS, "messages": RELAYS, "file": FILES}


# -- the process on the other core


def pump_bulk(into: socket.socket, out: socket.socket) -> int:
    """Sends BULK bytes into one end while it drains the other."""
    data, buffer = bytes(BULK_WRITE), bytearray(MIB)
    into.setblocking(False)
    out.setblocking(False)
    poll = select.poll()
    poll.register(into, select.POLLOUT)
    poll.register(out, select.POLLIN)
    sent = received = 0
    while True:
        for fd, _ in poll.poll():
            if fd == out.fileno():
                count = out.recv_into(buffer)
                received += count
                if not count:
                    return received
            elif sent < BULK:
                sent += into.send(data[: BULK - sent])
                if sent == BULK:
                    into.shutdown(socket.SHUT_WR)
                    poll.unregister(into)


def pump_messages(pairs: list[tuple[socket.socket, socket.socket]]) -> int:
    """One message under way on each pair."""
    message, received = bytes(MESSAGE), 0
    poll = select.epoll()
    into = {out.fileno(): first for first, out in pairs}
    outs = {out.fileno(): out for _, out in pairs}
    for first, out in pairs:
        poll.register(out, select.EPOLLIN)
        first.send(message)
    sent = len(pairs)
    waiting = dict.fromkeys(outs, MESSAGE)
    while received < MESSAGES * MESSAGE:
        for fd, _ in poll.poll():
            count = len(outs[fd].recv(MESSAGE))
            received += count
            waiting[fd] -= count
            if not waiting[fd] and sent < MESSAGES:
                into[fd].send(message)
                sent += 1
                waiting[fd] = MESSAGE
    for first, _ in pairs:
        first.shutdown(socket.SHUT_WR)
    return received


def drain(out: socket.socket) -> int:
    buffer, received = bytearray(MIB), 0
    while count := out.recv_into(buffer):
        received += count
    return received


def peer(case: str, port: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    pairs = []
    for _ in range(CONNECTIONS if case == "messages" else 1):
        first = socket.create_connection(("127.0.0.1", port))
        pairs.append(
            (first, first if case == "file" else socket.create_connection(("127.0.0.1", port)))
        )
    for sock in {sock for pair in pairs for sock in pair}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began = time.monotonic()
    if case == "bulk":
        received = pump_bulk(*pairs[0])
        pairs[0][1].shutdown(socket.SHUT_WR)
    elif case == "messages":
        received = pump_messages(pairs)
        for _, out in pairs:
            out.shutdown(socket.SHUT_WR)
    else:
        received = drain(pairs[0][0])
    print(received, time.monotonic() - began)


# -- the process that is measured


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def relay_all(way: Any, pairs: list[tuple[socket.socket, socket.socket]]) -> float:
    await trio.lowlevel.checkpoint()
    before = cpu_seconds()
    async with trio.open_nursery() as nursery:
        for left, right in pairs:
            nursery.start_soon(way, left, right)
    return cpu_seconds() - before


async def send_files(way: Any, sock: socket.socket, file: Any) -> float:
    before = cpu_seconds()
    for _ in range(FILE_TIMES):
        await way(socket.socket(fileno=os.dup(sock.fileno())), file)
    sock.shutdown(socket.SHUT_WR)
    return cpu_seconds() - before


def child(case: str, name: str, core: int, peer_core: int, path: str) -> None:
    os.sched_setaffinity(0, {core})
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        arguments = [
            sys.executable,
            __file__,
            "--peer",
            case,
            str(listener.getsockname()[1]),
            str(peer_core),
        ]
        other = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        count = CONNECTIONS if case == "messages" else 1
        if case == "file":
            sock = listener.accept()[0]
            with open(path, "rb") as file:
                used = trio.run(send_files, FILES[name], sock, file)
            expected = FILE * FILE_TIMES
        else:
            pairs = [(listener.accept()[0], listener.accept()[0]) for _ in range(count)]
            used = trio.run(relay_all, RELAYS[name], pairs)
            expected = BULK if case == "bulk" else MESSAGES * MESSAGE
        output = other.communicate()[0].split()
    received, seconds = int(output[0]), float(output[1])
    if received != expected:
        raise SystemExit(f"{received} bytes came out, not {expected}")
    units = MESSAGES if case == "messages" else expected / MIB
    print(used / units * 1e6, units / seconds, flush=True)
    os._exit(0)  # sockets that a way has left open are not what is measured


def measure(case: str, name: str, cores: list[int], path: str) -> tuple[float, float]:
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--child",
        case,
        name,
        str(cores[0]),
        str(cores[-1]),
        path,
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{case}, {name}: {done.stderr}")
    cpu, rate = done.stdout.split()
    return float(cpu), float(rate)


def run_case(case: str, rounds: int, path: str) -> None:
    cores = sorted(os.sched_getaffinity(0))
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES[case]}
    for _ in range(rounds):
        for name in CASES[case]:
            figures[name].append(measure(case, name, cores, path))
    unit = "message" if case == "messages" else "MiB"
    print(f"\n{case}")
    for name, values in figures.items():
        ratios = sorted(base[0] / value[0] for base, value in zip(figures[BASELINE], values))
        rates = sorted(value[1] / base[1] for base, value in zip(figures[BASELINE], values))
        cpu, rate = (statistics.median(value[index] for value in values) for index in (0, 1))
        print(
            f"  {name:16} {cpu:8.1f} us/{unit} {statistics.median(ratios):6.2f}x "
            f"[{ratios[0]:.2f}..{ratios[-1]:.2f}]"
            f"   {rate:9.0f} {unit}/s {statistics.median(rates):6.2f}x "
            f"[{rates[0]:.2f}..{rates[-1]:.2f}]"
        )


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="repeatable; default: all of them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(FILE // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        for case in arguments.case or CASES:
            run_case(case, arguments.rounds, file.name)


if __name__ == "__main__":
    main()
