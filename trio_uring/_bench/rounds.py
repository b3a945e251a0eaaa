"""One round: a running server, a load, and what the server used for it.

The order of events is the point of this file:

    load starts                              it gets one echo on every connection, warms up,
                                             and lets everything come back
    load prints START                        the server comes to rest, its CPU clock is read
    the load is told to go on                it loads for the time of the round, and lets
                                             everything come back
    load prints END                          the server comes to rest, its CPU clock is read again
    the load is told to go on                it prints its figures, and leaves

Rules of this file: the server is asleep whenever its clock is read, so that the CPU time is exactly
that of the operations counted. A round with an error, a stalled connection or a server that died
has no figures: it raises `RunError`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clocks import Cores, CpuClock, Work, idle_seconds, stray_threads, why_disturbed
from .figures import Round
from .processes import GRACE_SECONDS, START_SECONDS_MAX, Child, RunError
from .workloads import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .build import Programs
    from .clocks import CpuSample
    from .peers import Peer
    from .workloads import Server, Workload

PACKAGE_PARENT = Path(__file__).parents[2]
TLS_LOAD = Path(__file__).with_name("tls_load.py")
VARIABLES = "TRIO_URING_"


@dataclass(frozen=True)
class Place:
    """Where rounds are run, and with what."""

    programs: Programs
    cores: Cores


@dataclass(frozen=True)
class Running:
    """A server that is up."""

    peer: Peer
    child: Child
    port: str
    clock: CpuClock


def environment_of(peer: Peer) -> dict[str, str]:
    """Of its process: ours, but with nothing that would change what trio_uring does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    # A server is a script somewhere else: this very package is the one to be measured.
    path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **peer.environment}


def start_servers(
    peers: Sequence[Peer], server: Server, place: Place, stack: ExitStack
) -> tuple[list[Running], dict[str, str]]:
    """All at once, each on the servers' core; those that run, and why the others do not. They end
    with the stack."""
    children = {}
    for peer in peers:
        command = peer.command(server, place.programs.floor)
        child = Child(f"server {peer.name}", command, place.cores.server, environment_of(peer))
        children[peer.name] = stack.enter_context(child)
    running, failed = [], {}
    for peer in peers:
        child = children[peer.name]
        try:
            port = child.read_line(START_SECONDS_MAX)
            if not port.isdecimal():
                raise RunError(f"{child.name} printed {port!r} where its port was due")
            running.append(Running(peer, child, port, CpuClock(child.pid)))
        except RunError as error:
            failed[peer.name] = f"{error}\n{child.last_words()}"
    return running, failed


@dataclass(frozen=True)
class _Moment:
    """Everything that is read at one end of a round."""

    server: CpuSample
    idle: float
    own: float  # CPU time of this process

    @classmethod
    def now(cls, server: Running, cores: set[int]) -> _Moment:
        return cls(server.clock.settle(), idle_seconds(cores), time.process_time())


def measure(
    place: Place,
    server: Running,
    workload: Workload,
    seconds: float,
    warmup: float,
    offered: float = 0.0,
) -> Round:
    """One round of this server under this load; `offered` operations a second, or as many as it
    takes. Raises RunError."""
    core = place.cores.server if workload.one_core else place.cores.load
    cores = {place.cores.server, core}
    times = {"seconds": seconds, "warmup": warmup, "rate": offered}
    numbers = [word for name, value in times.items() for word in (name, f"{value:g}")]
    program = [sys.executable, str(TLS_LOAD)] if workload.tls else [str(place.programs.loadgen)]
    command = [*program, "port", server.port, *workload.load_arguments(), *numbers]
    with Child("load", command, core) as load:
        load.expect_line("START", warmup + START_SECONDS_MAX)
        before = _Moment.now(server, cores)
        load.go_on()
        load.expect_line("END", seconds + GRACE_SECONDS)
        after = _Moment.now(server, cores)
        load.go_on()
        figures = json.loads(load.read_line(GRACE_SECONDS))
        load.wait_for_exit()
        if figures["errors"] or figures["stalled"]:
            raise RunError(f"the load was not served: {figures}")
    strays = len(stray_threads(server.child.pid, place.cores.server))
    return _to_round(server, workload, offered, figures, (before, after), strays)


def _to_round(
    server: Running,
    workload: Workload,
    offered: float,
    figures: dict[str, Any],
    ends: tuple[_Moment, _Moment],
    strays: int,
) -> Round:
    before, after = ends
    cores = 1 if workload.one_core else 2
    wall = after.server.wall_seconds - before.server.wall_seconds
    used = after.server.cpu_seconds - before.server.cpu_seconds
    operations = figures["messages"] * workload.batch
    if workload.unit == "MiB":
        operations = figures["bytes"] / MIB
    if not operations:
        raise RunError(f"the load was not served: {figures}")
    work = Work(
        wall=wall,
        busy=cores * wall - (after.idle - before.idle),
        ours=used + figures["cpu_seconds"] + after.own - before.own,
        waited=after.server.wait_seconds - before.server.wait_seconds if cores > 1 else 0.0,
        cores=cores,
    )
    return Round(
        workload=workload.name,
        peer=server.peer.name,
        offered=offered,
        rate=operations / figures["seconds"],
        cpu_us=used / operations * 1e6,
        p50_us=0.0 if workload.batch > 1 else figures["p50_us"],
        p99_us=0.0 if workload.batch > 1 else figures["p99_us"],
        load_share=figures["cpu_seconds"] / figures["seconds"],
        strays=strays,
        dropped=why_disturbed(work),
    )
