"""What a process used, what else ran, and where processes may run.

Rules of this file: it reads; it changes nothing but the limit of open files. `why_disturbed` is the
one rule by which a round is dropped.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .processes import RunError

if TYPE_CHECKING:
    from collections.abc import Collection

# A round is dropped if other work took more than this share of it on one of the cores, besides
# what the clock of /proc/stat cannot tell; or if the server waited this long for a core of its own.
OTHER_SHARE_MAX = 0.08
WAIT_SHARE_MAX = 0.05
SETTLE_SECONDS = 0.002
SETTLE_SECONDS_MAX = 5.0


@dataclass(frozen=True)
class Cores:
    server: int
    load: int


@dataclass(frozen=True)
class CpuSample:
    wall_seconds: float
    cpu_seconds: float
    wait_seconds: float


class CpuClock:
    """The CPU time, user and system, of all threads of another process, dead ones and io_uring's
    workers included.

    It is the process's own clock_getcpuclockid(3) clock: nanoseconds, where /proc/<pid>/stat has
    hundredths of a second and the schedstat files of /proc/<pid>/task lose what threads that have
    ended used. Of a process that is asleep it is exact; of one that runs, a timer tick old at most
    (4 ms with HZ=250).
    """

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise RunError(f"no CPU clock for process {pid}: {os.strerror(error)}")
        self._clock = clock.value
        self._schedstat = Path(f"/proc/{pid}/schedstat")

    def sample(self) -> CpuSample:
        if sys.platform != "linux":
            raise AssertionError
        wall, cpu = time.monotonic(), time.clock_gettime(self._clock)
        return CpuSample(wall, cpu, self._waited())

    def _waited(self) -> float:
        """For how many seconds its first thread, which does the work, has waited for a core."""
        try:
            # Nanoseconds on the processor, nanoseconds waiting for one, turns.
            return int(self._schedstat.read_text().split()[1]) / 1e9
        except OSError as exc:  # /proc is hidden, or the kernel does not count this
            raise RunError(f"{self._schedstat} cannot be read: {exc.strerror}") from exc

    def settle(self) -> CpuSample:
        """The sample once the process has used nothing for SETTLE_SECONDS: it is asleep."""
        before = self.sample()
        deadline = before.wall_seconds + SETTLE_SECONDS_MAX
        while True:
            time.sleep(SETTLE_SECONDS)
            now = self.sample()
            if now.cpu_seconds == before.cpu_seconds:
                return now
            if now.wall_seconds > deadline:
                raise RunError("the server does not come to rest")
            before = now


@dataclass(frozen=True)
class Work:
    """What ran on some cores between two moments, in seconds.

    Attributes:
        wall: the time between them.
        busy: of all the cores together, not idle.
        ours: CPU time of the server, the load and this process.
        waited: how long the server was ready to run and did not; 0 where it shares its core.
        cores: their number.
    """

    wall: float
    busy: float
    ours: float
    waited: float
    cores: int


def why_disturbed(work: Work) -> str:
    """Why a round is dropped; empty if it counts."""
    if sys.platform != "linux":
        raise AssertionError
    unknown = work.cores / os.sysconf("SC_CLK_TCK")
    other = work.busy - work.ours - unknown
    if other > OTHER_SHARE_MAX * work.wall:
        return f"other work took {other / work.wall:.0%} of the round"
    if work.waited > WAIT_SHARE_MAX * work.wall:
        return f"the server waited for its core for {work.waited / work.wall:.0%} of the round"
    return ""


def idle_seconds(cores: Collection[int], stat: Path = Path("/proc/stat")) -> float:
    """How long these cores have been idle together, as far as the kernel's clock ticks tell."""
    if sys.platform != "linux":
        raise AssertionError
    ticks = 0
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{core}" for core in cores}:
            ticks += int(fields[3]) + int(fields[4])  # idle, and waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")


def stray_threads(pid: int, core: int) -> tuple[str, ...]:
    """The threads of a process that may run elsewhere than on this core.

    io_uring's workers and its SQPOLL thread take the mask of the cpuset, not that of the process:
    with them a server has more than its one core, and its messages per second are not comparable.
    """
    if sys.platform != "linux":
        raise AssertionError
    strays = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            if os.sched_getaffinity(int(task.name)) != {core}:
                strays.append((task / "comm").read_text().strip())
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended while it was looked at
    return tuple(strays)


def choose_cores() -> Cores:
    """The first two cores that this process may use; with one core the load would be measured as
    the server."""
    if sys.platform != "linux":
        raise AssertionError
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RunError("the benchmark needs two cores: one for the server, one for the load")
    return Cores(server=cores[0], load=cores[1])


def allow_open_files(wanted: int) -> None:
    """Raise the soft limit of open files, which the children inherit."""
    if sys.platform != "linux":
        raise AssertionError
    import resource  # Windows lacks it, and can import this module

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RunError(f"{wanted} open files are needed, and the hard limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
