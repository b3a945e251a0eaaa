"""One measured run of the echo benchmark: a fresh server on one core, the load on another, and what
both of them used.

`run_once` is the whole interface. The order of events is the point of this file:

    server starts, prints its port           pinned to `cores.server`
    load starts, gets one echo on every      pinned to `cores.load`, like this process
    connection, warms up
    load prints START                        the server's CPU clock is read
    load prints END, and goes on for 0.1 s   the server's CPU clock is read again, while the server
                                             is still busy
    load prints its figures, and leaves
    the server's standard input is closed    it must stop by itself, with exit code 0

Rules of this file:

- Nothing waits without a deadline, and every child is killed on the way out, whatever happened.
- A run that is not clean has no figures: errors or stalled connections in the load, a server that
  died or that does not stop, raise `RunError` with all that the children had to say.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
SERVER = HERE / "echo_server.py"
LOADGEN_SOURCE = HERE / "loadgen.c"
CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")

COMPILE_SECONDS_MAX = 60.0
# Importing and binding, or connecting 500 times, on a machine that is busy.
START_SECONDS_MAX = 20.0
GRACE_SECONDS = 15.0  # for anything that should take no time at all
LINE_BYTES_MAX = 65536


class RunError(Exception):
    """A run that gave no usable figures: why, and then what its children had written to stderr
    (`Child` adds it)."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.last_words: list[str] = []

    def __str__(self) -> str:
        return "\n".join([str(self.args[0]), *self.last_words])


@dataclass(frozen=True)
class Cores:
    server: int
    load: int


@dataclass(frozen=True)
class Load:
    """What the load generator is asked for."""

    connections: int
    message_bytes: int
    seconds: float
    warmup_seconds: float


@dataclass(frozen=True)
class RunResult:
    """The figures of one run; a share is of one core, over the counted window."""

    messages_per_second: float
    cpu_us_per_message: float
    p50_us: float
    p99_us: float
    max_us: float
    server_cpu_share: float
    load_cpu_share: float
    server_wait_share: float  # ready to run, while something else had its core
    stray_threads: tuple[str, ...]
    has_ring: bool


@dataclass(frozen=True)
class CpuSample:
    wall_seconds: float
    cpu_seconds: float
    wait_seconds: float


class CpuClock:
    """The CPU time, user and system, of all threads of another process, dead ones and io_uring's
    workers included.

    It is the process's own clock_getcpuclockid(3) clock: nanoseconds, where /proc/<pid>/stat has
    hundredths of a second and /proc/<pid>/schedstat has only the first thread. The kernel brings a
    running thread's share up to date at every timer tick, so a sample is at most a tick old (4 ms
    with HZ=250: 0.13 % of a window of 3 s).
    """

    def __init__(self, pid: int) -> None:
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
        if error:
            raise RunError(f"no CPU clock for process {pid}: {os.strerror(error)}")
        self._clock = clock.value
        self._schedstat = Path(f"/proc/{pid}/schedstat")

    def sample(self) -> CpuSample:
        wall, cpu = time.monotonic(), time.clock_gettime(self._clock)
        # Nanoseconds on the processor, nanoseconds waiting for one, turns: of the first thread,
        # which does the work.
        return CpuSample(wall, cpu, int(self._schedstat.read_text().split()[1]) / 1e9)


class Child:
    """A child process on one core, with its lines read against a deadline and its stderr kept for
    the error message.

    Leaving the `with` block kills it, and adds its last words to a RunError on its way through;
    `wait_for_exit` is how it ends when all is well.
    """

    def __init__(self, name: str, command: list[str], core: int) -> None:
        self.name = name
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (`_end` closes it; not a pipe: nobody reads it until the end)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except BaseException:
            self._stderr.close()
            raise
        self.pid = self._process.pid
        # Only the first thread exists by now, and the threads of a process inherit its mask.
        os.sched_setaffinity(self.pid, {core})

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, RunError) and (words := self.last_words()):
                error.last_words.append(words)
        finally:
            self._end()

    def _end(self) -> None:
        try:
            self._process.kill()
            self._process.wait(GRACE_SECONDS)
        finally:
            for pipe in (self._process.stdin, self._process.stdout, self._stderr):
                if pipe is not None:
                    pipe.close()

    def read_line(self, seconds: float) -> str:
        """The next line of its standard output; RunError if it ends first, or takes longer than
        this."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        fd = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise RunError(f"{self.name} printed nothing for {seconds:g} s")
            chunk = os.read(fd, LINE_BYTES_MAX)
            if not chunk or len(self._buffer) > LINE_BYTES_MAX:
                raise RunError(f"{self.name} ended its output before the line that was due")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def expect_line(self, expected: str, seconds: float) -> None:
        line = self.read_line(seconds)
        if line != expected:
            raise RunError(f"{self.name} printed {line!r} where {expected!r} was due")

    def wait_for_exit(self) -> None:
        """Close its standard input and wait until it has left by itself; RunError if it will not,
        or leaves badly."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.name} did not stop within {GRACE_SECONDS:g} s") from None
        if code != 0:
            raise RunError(f"{self.name} ended with exit code {code}")

    def last_words(self) -> str:
        """What it wrote to stderr so far, and how it ended if it did; empty if there is nothing to
        say."""
        # A child whose connections just broke may be about to print the traceback that explains it.
        try:
            code: int | None = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()
        if not text and not code:
            return ""
        state = "still running" if code is None else f"exit code {code}"
        return f"--- {self.name} ({state}), stderr:\n{text or '(empty)'}"


def compile_loadgen(folder: Path) -> Path:
    """Compile the load generator into this folder; what the compiler says goes into the
    RunError."""
    binary = folder / "loadgen"
    command = [os.environ.get("CC", "cc"), *CFLAGS, str(LOADGEN_SOURCE), "-o", str(binary)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the load generator cannot be compiled: {error}") from error
    if done.returncode != 0:
        raise RunError(f"the load generator does not compile:\n{' '.join(command)}\n{done.stderr}")
    return binary


def stray_threads(pid: int, core: int) -> tuple[str, ...]:
    """The threads of a process that may run elsewhere than on this core.

    io_uring's workers and its SQPOLL thread take the mask of the cpuset, not that of the process:
    with them a server has more than its one core, and its messages per second are not comparable.
    """
    strays = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            if os.sched_getaffinity(int(task.name)) != {core}:
                strays.append((task / "comm").read_text().strip())
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended while it was looked at
    return tuple(strays)


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


def run_once(loadgen: Path, impl: str, load: Load, cores: Cores) -> RunResult:
    """Measure one fresh server under this load; the time it can take is bounded by the load's own
    times."""
    with Child(
        f"server {impl}", [sys.executable, str(SERVER), "--impl", impl], cores.server
    ) as server:
        port = server.read_line(START_SECONDS_MAX)
        if not port.isdecimal():
            raise RunError(f"{server.name} printed {port!r} where its port was due")
        result = measure(loadgen, server, port, load, cores)
        server.wait_for_exit()
        if words := server.last_words():
            # A warning that did not stop it: not silent, and not fatal.
            print(words, file=sys.stderr)
    return result


def measure(loadgen: Path, server: Child, port: str, load: Load, cores: Cores) -> RunResult:
    """Put this load on a server that listens, and read the server's CPU clock at both ends of the
    window."""
    numbers = (load.connections, load.message_bytes, load.seconds, load.warmup_seconds)
    with Child(
        "loadgen", [str(loadgen), "127.0.0.1", port, *map(str, numbers)], cores.load
    ) as child:
        clock = CpuClock(server.pid)
        child.expect_line("START", load.warmup_seconds + START_SECONDS_MAX)
        start = clock.sample()
        child.expect_line("END", load.seconds + GRACE_SECONDS)
        end = clock.sample()
        strays, ring = stray_threads(server.pid, cores.server), has_ring(server.pid)
        figures = json.loads(child.read_line(GRACE_SECONDS))
        child.wait_for_exit()
        if figures["errors"] or figures["stalled"] or not figures["messages"]:
            raise RunError(f"the load was not served: {figures}")
    return to_result(figures, start, end, strays, ring)


def to_result(
    figures: dict[str, Any], start: CpuSample, end: CpuSample, strays: tuple[str, ...], ring: bool
) -> RunResult:
    # This process reads START and END a little late, each time by something else. The share of a
    # core does not mind; multiplied with the load's own window it gives the CPU time of exactly the
    # messages that were counted.
    wall = end.wall_seconds - start.wall_seconds
    share = (end.cpu_seconds - start.cpu_seconds) / wall
    seconds, messages = figures["seconds"], figures["messages"]
    return RunResult(
        messages_per_second=messages / seconds,
        cpu_us_per_message=share * seconds / messages * 1e6,
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        max_us=figures["max_us"],
        server_cpu_share=share,
        load_cpu_share=figures["cpu_seconds"] / seconds,
        server_wait_share=(end.wait_seconds - start.wait_seconds) / wall,
        stray_threads=strays,
        has_ring=ring,
    )
