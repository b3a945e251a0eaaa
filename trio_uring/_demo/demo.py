"""`python -m trio_uring demo`: serves files to many clients, on our streams and on trio's, and
compares.

Rules of this file: both kinds of streams get the same work, in turns, each turn with a new server
process and a new trio.run, so that neither affects the other. System calls are counted in separate
runs, because strace slows down what it watches. A wrong checksum makes the whole demo fail.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import trio

import trio_uring

from .._driver.run import backend_info, check_variables
from .._errors import CommandError, RingUnavailableError
from .files import STACKS, Download, File, ProtocolError, Tally, run_client, scan
from .options import add_arguments as add_arguments
from .report import Progress, Result, Trace, print_heading, print_report
from .server import MARK_START, MARK_STOP

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .._driver.backend import BackendInfo

MIB = 2**20
CUT_SHARE = 0.05  # share of the files that can be cut whose client is cancelled in the middle
CUT_SIZE_MIN = 16384  # bytes of the smallest file that can be cut
STALL_MAX = 30.0  # seconds without a byte, after which the demo gives up
TRACED_BYTES = 16 * MIB  # bytes served while strace watches
TICK = 0.1  # seconds between two looks at the progress
LIBRARY_SUFFIXES = (".py", ".so")


class DemoError(CommandError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Work:
    """What is to be served, for both kinds of streams."""

    directory: Path
    files: list[File]
    clients: int
    seed: int

    def downloads(self, bytes_wanted: int) -> list[Download]:
        """The files in random order, repeated until there are enough bytes. Some of them are to be
        cut."""
        rng = random.Random(self.seed)
        downloads: list[Download] = []
        while bytes_wanted > 0:
            for file in rng.sample(self.files, len(self.files)):
                cut = (
                    rng.randrange(1, file.size // 2)
                    if file.size >= CUT_SIZE_MIN and rng.random() < CUT_SHARE
                    else None
                )
                downloads.append(Download(file, cut))
                bytes_wanted -= file.size
                if bytes_wanted <= 0:
                    break
        self._cut_one(downloads)
        return downloads

    def _cut_one(self, downloads: list[Download]) -> None:
        """Makes sure that, however few files there are, one is cut if one can be."""
        if all(download.cut is None for download in downloads):
            largest = max(downloads, key=lambda download: download.file.size)
            if largest.file.size >= CUT_SIZE_MIN:
                largest.cut = largest.file.size // 4


@dataclass
class Round:
    """One turn of one kind of streams: a server process, and the clients in this process."""

    stack: str
    work: Work
    downloads: list[Download]
    server_cpu: int  # the CPU that the server is pinned to; -1: none
    wrapper: tuple[str, ...] = ()  # a command under which to run the server
    tally: Tally = field(default_factory=Tally)
    error: Exception | None = None

    def run(self, progress: Progress) -> Result:
        """Does the work.

        Raises:
            DemoError: the server or a client failed.
        """
        with tempfile.TemporaryFile() as stderr:
            try:
                return trio.run(self._run, progress, stderr)
            except DemoError as exc:
                stderr.seek(0)
                said = stderr.read().decode(errors="replace").strip().splitlines()
                raise DemoError(
                    f"{exc}; the server said: {said[-1]}" if said else str(exc)
                ) from exc

    async def _run(self, progress: Progress, stderr: IO[bytes]) -> Result:
        command = [*self.wrapper, sys.executable, "-m", "trio_uring._demo.server"]
        process = await trio.lowlevel.open_process(
            [*command, self.stack, str(self.server_cpu), os.fspath(self.work.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            index = [(file.name, file.size, file.digest.hex()) for file in self.work.files]
            lines = _Lines(process.stdout)
            try:
                await process.stdin.send_all(json.dumps(index).encode() + b"\n")
            except trio.BrokenResourceError:
                raise DemoError("the server did not start") from None
            port = (await lines.next())["port"]
            wall, cpu = time.perf_counter(), time.process_time()
            await self._run_clients(port, progress)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            await process.stdin.aclose()
            report = await lines.next()
            await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await _stop(process)
        return Result(
            self.stack,
            wall,
            cpu,
            report["cpu"],
            report["hung_up"],
            self.tally,
            report["statistics"],
        )

    async def _run_clients(self, port: int, progress: Progress) -> None:
        downloads = iter(self.downloads)
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch, progress, outer.cancel_scope)
            async with trio.open_nursery() as nursery:
                for _ in range(self.work.clients):
                    nursery.start_soon(self._run_client, port, downloads, outer.cancel_scope)
            outer.cancel_scope.cancel()
        progress.show(self.tally.bytes)
        if self.error is not None:
            raise DemoError(
                f"{self.stack}: {type(self.error).__name__}: {self.error}"
            ) from self.error

    async def _run_client(
        self, port: int, downloads: Iterator[Download], everything: trio.CancelScope
    ) -> None:
        try:
            await run_client(STACKS[self.stack], port, downloads, self.tally)
        except (OSError, ProtocolError, trio.BrokenResourceError) as exc:
            self.error = self.error or exc
            everything.cancel()

    async def _watch(self, progress: Progress, everything: trio.CancelScope) -> None:
        """Shows the progress, and ends the round when there is no more progress."""
        before, since = -1, trio.current_time()
        while True:
            progress.show(self.tally.bytes)
            if self.tally.bytes != before:
                before, since = self.tally.bytes, trio.current_time()
            elif trio.current_time() - since > STALL_MAX:
                self.error = self.error or DemoError(f"no byte arrived for {STALL_MAX:.0f} seconds")
                everything.cancel()
            await trio.sleep(TICK)


class _Lines:
    """The JSON objects that the server prints, one per line."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def next(self) -> Any:
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                raise DemoError("the server ended before its time")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


async def _stop(process: trio.Process) -> None:
    """Closes the server's pipes, which ends it; kills it if it does not end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await trio.aclose_forcefully(pipe)
    with trio.move_on_after(5):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


# -- system calls

_CALL = re.compile(r"^(?:\d+\s+)?(\w+)\(")


def count_calls(trace: str) -> Counter[str]:
    """Counts the system calls between the marks in the output of strace -f."""
    _, _, rest = trace.partition(MARK_START)
    served, _, _ = rest.partition(MARK_STOP)
    calls = Counter(match[1] for line in served.splitlines()[1:] if (match := _CALL.match(line)))
    # Do not count the second mark itself.
    calls.subtract({name: 1 for name in ("access", "faccessat", "faccessat2") if calls[name]})
    return +calls


def trace_calls(work: Work, stack: str, progress: Progress) -> Trace:
    """Serves a little under strace.

    Raises:
        DemoError: strace is not there, or may not trace here.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise DemoError("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="trio_uring-demo-") as folder:
        output = Path(folder, "trace")
        wrapper = (strace, "-f", "-qq", "-o", os.fspath(output))
        result = Round(stack, work, work.downloads(TRACED_BYTES), -1, wrapper).run(progress)
        return Trace(stack, count_calls(output.read_text(errors="replace")), result.tally)


# -- all of it


@contextmanager
def _pinned() -> Iterator[int]:
    """Yields one CPU for the server, and keeps the others for this process; -1 if there is only
    one."""
    if sys.platform != "linux":
        raise AssertionError
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        yield -1
        return
    os.sched_setaffinity(0, cpus[1:])
    try:
        yield cpus[0]
    finally:
        os.sched_setaffinity(0, cpus)


def _plan(arguments: argparse.Namespace) -> tuple[Work, BackendInfo]:
    library = Path(sysconfig.get_path("stdlib"))
    directory, suffixes = (
        (arguments.directory, ()) if arguments.directory else (library, LIBRARY_SUFFIXES)
    )
    try:
        check_variables()
        backend = backend_info()
        files = scan(directory, suffixes, arguments.max_mib * MIB)
    except RingUnavailableError as exc:
        raise DemoError(f"no ring: {exc.strerror}") from exc
    except ValueError as exc:
        raise DemoError(str(exc)) from exc
    except OSError as exc:
        raise DemoError(f"{directory}: {exc.strerror}") from exc
    if not files:
        raise DemoError(
            f"{directory}: no file to serve: every file is empty or larger than "
            f"{arguments.max_mib} MiB"
        )
    return Work(directory, files, arguments.clients, arguments.seed), backend


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo and prints its report.

    Args:
        arguments: directory, clients, max_mib, rounds and seed, as in options.py.

    Returns:
        The exit status: 0, or 1 if a checksum was wrong.

    Raises:
        DemoError: the demo could not be completed.
    """
    trio_uring.uninstall()  # trio's clients are to be trio's own, whatever the environment says
    work, backend = _plan(arguments)
    round_bytes = arguments.max_mib * MIB
    print_heading(work.directory, work.files, work.clients, arguments.rounds, round_bytes, backend)
    results: list[Result] = []
    traces: list[Trace] = []
    why_not = ""
    total = (
        sum(download.file.size for download in work.downloads(round_bytes))
        * arguments.rounds
        * len(STACKS)
    )
    with Progress(total) as progress:
        with _pinned() as server_cpu:
            for turn in range(arguments.rounds):
                for stack in STACKS:
                    progress.start(f"{stack}, round {turn + 1} of {arguments.rounds}")
                    results.append(
                        Round(stack, work, work.downloads(round_bytes), server_cpu).run(progress)
                    )
        try:
            for stack in STACKS:
                progress.start(f"{stack}, counting system calls", counted=False)
                traces.append(trace_calls(work, stack, progress))
        except DemoError as exc:
            why_not = str(exc)
    return print_report(results, traces, why_not)
