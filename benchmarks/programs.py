"""What enabling gains a whole program: hypercorn under wrk, and a websockets echo server; stock
trio against trio_uring.run.

    python benchmarks/programs.py                       # both programs, about 2 minutes
    python benchmarks/programs.py --program hypercorn --connections 16 --runs 9 --seconds 5

The programs are the libraries' own, unmodified; the two sides differ in one word, `trio.run` or
`trio_uring.run`. They take turns, each run in a fresh server process on one core, with the load on
another. README.md beside this file says what the figures mean.

Rules of this file: a load is a command that checks every answer and whose result is `Served`; a run
with an error in it has no figures. The server's CPU time is read before and after the load, over a
time in which it does nothing else.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_uring._bench.clocks import Cores, CpuClock, choose_cores, stray_threads
from trio_uring._bench.options import bounded_rounds, bounded_seconds
from trio_uring._bench.processes import GRACE_SECONDS, START_SECONDS_MAX, Child, RunError

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = ("stock", "enabled")
WARMUP_SECONDS = 1
MESSAGE_BYTES = 100
# of its core: a server below that waited for the load, or for its core, and its requests/s say
# little
BUSY_SHARE = 0.9


# -- the servers, each in a process of its own


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The smallest ASGI application that hypercorn serves."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


async def serve_hypercorn() -> None:
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve

    config = Config()
    config.bind, config.accesslog, config.errorlog = ["127.0.0.1:0"], None, None
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(partial(serve, hello, config))
        await announce(int(url.rpartition(":")[2]))
        nursery.cancel_scope.cancel()


async def serve_websockets() -> None:
    import trio
    from websockets.trio.server import ServerConnection, serve

    async def echo(websocket: ServerConnection) -> None:
        async for message in websocket:
            await websocket.send(message)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, echo, 0, host="127.0.0.1", compression=None))
        await announce(server.listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def announce(port: int) -> None:
    """Prints the port, and waits until standard input ends."""
    import trio

    print(port, flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)


SERVERS = {"hypercorn": serve_hypercorn, "websockets": serve_websockets}


def run_server(program: str, side: str) -> None:
    import trio

    import trio_uring

    (trio_uring.run if side == "enabled" else trio.run)(SERVERS[program])


# -- the loads


@dataclass(frozen=True)
class Served:
    requests: int
    seconds: float


def load_with_wrk(port: str, connections: int, seconds: float) -> Served:
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{round(seconds)}s",
        f"http://127.0.0.1:{port}/",
    ]
    text = run_load(command, seconds)
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", text)
    if not found or "Socket errors" in text or "Non-2xx" in text:
        raise RunError(f"wrk was not served:\n{text}")
    return Served(int(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1))


def load_with_messages(port: str, connections: int, seconds: float) -> Served:
    text = run_load(
        [sys.executable, __file__, "--load", port, str(connections), str(seconds)], seconds
    )
    return Served(**json.loads(text))


def run_load(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + START_SECONDS_MAX, check=False
    )
    if done.returncode:
        raise RunError(
            f"the load ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


LOADS: dict[str, Callable[[str, int, float], Served]] = {
    "hypercorn": load_with_wrk,
    "websockets": load_with_messages,
}


def send_messages(port: int, connections: int, seconds: float) -> None:
    """The load of the websockets server, in a process of its own: each connection has one message
    under way, all the time.

    Plain sockets, and frames that are made once: a client by the library would cost as much as the
    server.
    """
    payload, mask = os.urandom(MESSAGE_BYTES), os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    frame = bytes([0x82, 0x80 | MESSAGE_BYTES]) + mask + masked
    expected = bytes([0x82, MESSAGE_BYTES]) + payload
    sockets = {sock.fileno(): sock for sock in (open_websocket(port) for _ in range(connections))}
    received = dict.fromkeys(sockets, b"")
    poller = select.epoll()
    for fd, sock in sockets.items():
        poller.register(fd, select.EPOLLIN)
        sock.sendall(frame)
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
        ready = poller.poll(GRACE_SECONDS)
        if not ready:
            raise SystemExit("no echo any more")
        for fd, _ in ready:
            got = received[fd] + sockets[fd].recv(65536)
            if got == expected:
                count += 1
                received[fd] = b""
                sockets[fd].sendall(frame)
            elif got and expected.startswith(got):
                received[fd] = got
            else:
                raise SystemExit(f"an echo that is none: {got!r}")
    print(json.dumps({"requests": count, "seconds": time.monotonic() - begin}))


def open_websocket(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS_MAX)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        "GET / HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
    )
    sock.sendall("\r\n".join((*lines, "Sec-WebSocket-Version: 13", "", "")).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = sock.recv(65536)
        if not chunk:
            raise SystemExit(f"the handshake was refused: {answer!r}")
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 101 ") or not answer.endswith(b"\r\n\r\n"):
        raise SystemExit(f"the handshake was refused: {answer!r}")
    return sock


# -- runs


@dataclass(frozen=True)
class Figures:
    requests_per_second: float
    cpu_us_per_request: float
    server_share: float
    """Of its core that the server used."""


def has_ring(pid: int) -> bool:
    """Whether a process has an io_uring open, whatever its library says: a fallback to epoll must
    not go unseen."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(fd) == "anon_inode:[io_uring]":
                return True
        except FileNotFoundError:
            continue  # it was closed while it was looked at
    return False


def run_once(program: str, side: str, arguments: argparse.Namespace, cores: Cores) -> Figures:
    command = [sys.executable, __file__, "--server", program, side]
    load = LOADS[program]
    with Child(f"{program} {side}", command, cores.server) as server:
        port = server.read_line(START_SECONDS_MAX)
        load(port, arguments.connections, WARMUP_SECONDS)
        clock = CpuClock(server.pid)
        before = clock.sample()
        served = load(port, arguments.connections, arguments.seconds)
        used = clock.sample().cpu_seconds - before.cpu_seconds
        ring, strays = has_ring(server.pid), stray_threads(server.pid, cores.server)
        server.wait_for_exit()
    if ring != (side == "enabled") or strays:
        raise RunError(
            f"{program} {side}: an io_uring is {'' if ring else 'not '}open, "
            f"threads on other cores: {strays}"
        )
    if not served.requests:
        raise RunError(f"{program} {side} served nothing")
    return Figures(
        served.requests / served.seconds, used / served.requests * 1e6, used / served.seconds
    )


def spread(values: list[float], digits: int) -> str:
    middle, low, high = (
        f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} [{low}..{high}]"


def report(results: dict[str, list[Figures]]) -> None:
    for side, runs in results.items():
        rate = spread([run.requests_per_second for run in runs], 0)
        cpu = spread([run.cpu_us_per_request for run in runs], 1)
        share = statistics.median(run.server_share for run in runs)
        idle = "" if share >= BUSY_SHARE else "   (not all of its core: go by the CPU time)"
        print(
            f"  {side:8} {rate:>28} requests/s   {cpu:>26} CPU us/request   "
            f"server {share:.0%}{idle}"
        )
    stock, enabled = (results[side] for side in SIDES)
    rates = [
        after.requests_per_second / before.requests_per_second
        for before, after in zip(stock, enabled)
    ]
    cpus = [
        before.cpu_us_per_request / after.cpu_us_per_request
        for before, after in zip(stock, enabled)
    ]
    print(
        f"  gain     requests/s {spread(rates, 2)}   requests per CPU second {spread(cpus, 2)}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What a whole program gains by trio_uring.run instead of trio.run."
    )
    parser.add_argument(
        "--program", action="append", choices=SERVERS, help="repeatable; default: all of them"
    )
    parser.add_argument(
        "--connections", type=int, default=64, help="connections at the same time (default: 64)"
    )
    parser.add_argument(
        "--runs", type=bounded_rounds, default=5, help="runs of each side (default: 5)"
    )
    parser.add_argument(
        "--seconds",
        type=bounded_seconds,
        default=4.0,
        help="seconds counted in each run (default: 4)",
    )
    arguments = parser.parse_args()
    arguments.program = list(dict.fromkeys(arguments.program or SERVERS))
    if "hypercorn" in arguments.program and shutil.which("wrk") is None:
        parser.error(
            "hypercorn's load is wrk, which is not installed: "
            "`apt-get install wrk` (Debian, Ubuntu) or `brew install wrk`"
        )
    return arguments


def main() -> int:
    arguments = parse_arguments()
    try:
        cores = choose_cores()
        # The loads inherit it; `Child` moves a server to its own.
        os.sched_setaffinity(0, {cores.load})
        for program in arguments.program:
            print(
                f"\n{program}: {arguments.connections} connections, "
                f"{arguments.runs} runs of {arguments.seconds:g} s each way"
            )
            results: dict[str, list[Figures]] = {side: [] for side in SIDES}
            for _ in range(arguments.runs):
                for side in SIDES:
                    results[side].append(run_once(program, side, arguments, cores))
            report(results)
    except (RunError, subprocess.TimeoutExpired) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--server"]:
        run_server(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--load"]:
        send_messages(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        sys.exit(main())
