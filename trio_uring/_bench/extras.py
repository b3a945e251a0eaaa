"""What is not measured in rounds under load: idle connections, mass cancellation, and starting.

Rules of this file: the same as of rounds, one server at a time; figures are minima of a few runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .clocks import allow_open_files
from .processes import RunError
from .rounds import environment_of, measure, start_servers
from .schedule import SPARE_FILES
from .workloads import Server, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Figures
    from .peers import Peer
    from .rounds import Place, Running
    from .schedule import Plan
    from .workloads import Workload

ACTIVE = "1x1K"  # the load of the connection that is not idle
AT_A_TIME = 100  # connections that are opened before the server has its turn
STARTS = 10
CANCELS = 5
CANCEL_SECONDS_MAX = 60.0
RUNS = 300  # of nothing, in one process

# How a library is imported, and a run of it that does nothing.
STARTING = {
    "trio": ("import trio", "trio.run(nothing)"),
    "ring": ("import trio, trio_uring", "trio_uring.run(nothing)"),
    "python": ("import trio, trio_uring", "trio_uring.run(nothing)"),
    "readiness": ("import trio, trio_uring", "trio_uring.run(nothing)"),
    "asyncio": ("import asyncio", "asyncio.run(nothing())"),
    "uvloop": ("import uvloop", "uvloop.run(nothing())"),
}


def _resident_bytes(pid: int) -> int:
    if sys.platform != "linux":
        raise AssertionError
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _active_us(place: Place, server: Running, plan: Plan) -> float:
    """CPU of the server for a message, the least of the plan's rounds."""
    rounds = range(max(2, plan.paced_rounds))
    load = parse(ACTIVE)
    return min(measure(place, server, load, plan.seconds, plan.warmup).cpu_us for _ in rounds)


def _connect(server: Running, number: int, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    sock.bind((f"127.0.0.{2 + number % 200}", 0))
    sock.connect(("127.0.0.1", int(server.port)))
    return sock


def _open_idle(server: Running, count: int, stack: ExitStack) -> None:
    for number in range(count):
        _connect(server, number, stack)
        if number % AT_A_TIME == 0:
            server.clock.settle()
    server.clock.settle()


def _start(
    place: Place, workload: Workload, peer: Peer, server: Server, stack: ExitStack
) -> Running:
    allow_open_files(workload.connections + SPARE_FILES)
    running, failed = start_servers([peer], server, place, stack)
    if failed:
        raise RunError(failed[peer.name])
    return running[0]


def measure_idle(place: Place, plan: Plan, workload: Workload, peer: Peer) -> Figures:
    """The memory of an idle connection, and the cost of one that is active among them and alone.

    Memory is that of the process, without the kernel's sockets. Raises RunError.
    """
    with ExitStack() as stack:
        server = _start(place, workload, peer, Server("echo"), stack)
        alone = _active_us(place, server, plan)
        before = _resident_bytes(server.child.pid)
        with ExitStack() as idle:
            _open_idle(server, workload.connections, idle)
            memory = (_resident_bytes(server.child.pid) - before) / workload.connections
            active = _active_us(place, server, plan)
    return {"memory_bytes": memory, "alone_us": alone, "active_us": active}


def measure_cancel(place: Place, workload: Workload, peer: Peer) -> Figures:
    """CPU time of cancelling a blocked receive, among many that are cancelled together.

    Raises RunError."""
    with ExitStack() as stack:
        server = _start(place, workload, peer, workload.server, stack)
        _open_idle(server, workload.connections, stack)
        requester = _connect(server, 0, stack)
        requester.settimeout(CANCEL_SECONDS_MAX)
        answers = stack.enter_context(requester.makefile("r"))
        times = []
        for _ in range(CANCELS):
            try:
                requester.sendall(b"!")
                times.append(float(answers.readline()))
            except (OSError, ValueError) as error:  # an empty line is the end of the server
                raise RunError(f"{server.child.name} does not answer: {error}") from error
    return {"cancel_us": min(times) / 1e3}


def _cpu_ms(command: list[str], environment: dict[str, str]) -> float:
    """CPU time of a process from its start to its end."""
    if sys.platform != "linux":
        raise AssertionError
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f"{command[-1]!r} failed")
    return (usage.ru_utime + usage.ru_stime) * 1e3


def measure_start(peer: Peer) -> Figures:
    """CPU time of importing the library, beyond that of Python itself, and of a run that does
    nothing. Raises RunError."""
    imports, run = STARTING[peer.name]
    environment = environment_of(peer)
    timed = (
        f"{imports}\nimport time\nasync def nothing(): pass\ntimes = []\n"
        f"for _ in range({RUNS}):\n  began = time.perf_counter()\n  {run}\n"
        "  times.append(time.perf_counter() - began)\nprint(min(times) * 1e6)"
    )
    python = [sys.executable, "-c"]
    empty = min(_cpu_ms([*python, "pass"], environment) for _ in range(STARTS))
    whole = min(_cpu_ms([*python, imports], environment) for _ in range(STARTS))
    done = subprocess.run(
        [*python, timed], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(done.stderr)
    return {"import_ms": whole - empty, "run_us": float(done.stdout)}


def able(workload: Workload, peers: Sequence[Peer]) -> list[Peer]:
    """The peers that a workload of this file can be measured with."""
    if workload.kind == "startup":
        return [peer for peer in peers if peer.name in STARTING]
    return [peer for peer in peers if workload.server.mode in peer.modes]


def measure_apart(place: Place, plan: Plan, workload: Workload, peer: Peer) -> Figures:
    """The figures of a workload of this file. Raises RunError."""
    if workload.kind == "startup":
        return measure_start(peer)
    if workload.kind == "cancel":
        return measure_cancel(place, workload, peer)
    return measure_idle(place, plan, workload, peer)
