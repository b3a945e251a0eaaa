"""The demonstration's child processes: how they are started, asked, pinned and ended.

Rules of this file: a child cannot outlive the demonstration. It is killed on the way out, whatever
happened, and ends by itself when its standard input does, which it also does if the parent is
killed. Ctrl-C is the parent's alone. Nothing waits without a deadline; what a child wrote to
standard error becomes part of the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from typing import IO, TYPE_CHECKING, Any

import trio

from .. import uninstall
from .._errors import CommandError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ANSWER_SECONDS_MAX = 30.0  # for a child to start, or to answer beyond the time that it was given
GRACE_SECONDS = 5.0
OPEN_FILES = 1024  # wanted by the children; macOS gives 256


class DemoError(CommandError):
    """The demo cannot go on; the message says why."""


class EndedError(DemoError):
    """A child ended before its time."""


class Lines:
    """The JSON objects that a child prints, one per line."""

    def __init__(self, stream: trio.abc.ReceiveStream, name: str = "the server") -> None:
        self._stream = stream
        self._name = name
        self._buffer = b""

    async def next(self) -> Any:
        """The next one.

        Raises:
            EndedError: the child ended.
            DemoError: it says that it cannot go on: `{"error": why}`.
        """
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some()
            if not chunk:
                raise EndedError(f"{self._name} ended before its time")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise DemoError(answer["error"])
        return answer


class Child:
    """A process that answers each line of JSON with a line of JSON."""

    def __init__(self, name: str, process: trio.Process, stderr: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.name = name
        self._process = process
        self._stdin = process.stdin
        self._lines = Lines(process.stdout, name)
        self._stderr = stderr

    async def next(self, seconds: float = 0.0) -> Any:
        """What it says next, which takes it about `seconds`.

        Raises:
            DemoError: it ended, takes much longer, or says why it cannot go on.
        """
        with trio.move_on_after(seconds + ANSWER_SECONDS_MAX):
            try:
                return await self._lines.next()
            except EndedError as exc:
                raise await self._with_last_words(exc) from None
        raise DemoError(f"{self.name} said nothing for {ANSWER_SECONDS_MAX:.0f} seconds")

    async def ask(self, question: Any, seconds: float = 0.0) -> Any:
        """Its answer, as `next`."""
        # If it has ended, its end of the other pipe tells, and why.
        with contextlib.suppress(trio.BrokenResourceError):
            await self._stdin.send_all(json.dumps(question).encode() + b"\n")
        return await self.next(seconds)

    async def _with_last_words(self, error: DemoError) -> DemoError:
        """The error, with the last line that it wrote to standard error: of a traceback, what was
        raised; of a group's, what was raised last."""
        self._process.kill()
        await self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = [words for line in lines if (words := line.strip(" |+-"))]
        return DemoError(f"{error}; it said: {said[-1]}") if said else error


@asynccontextmanager
async def child(name: str, module: str, *arguments: str) -> AsyncIterator[Child]:
    """Runs a module of this package as a process, for as long as the block."""
    with tempfile.TemporaryFile() as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", f"{__package__}.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        try:
            yield Child(name, process, stderr)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await stop(process)


async def stop(process: trio.Process) -> None:
    """Closes a child's pipes, which ends it; kills it if it does not end."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await trio.aclose_forcefully(pipe)
    with trio.move_on_after(GRACE_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


@contextmanager
def pinned() -> Iterator[int]:
    """Yields one CPU for the server, and keeps the others for this process; -1 if there is only
    one, or if processes cannot be pinned here."""
    if sys.platform != "linux" or not hasattr(os, "sched_getaffinity"):  # PyPy lacks it
        yield -1
        return
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        yield -1
        return
    os.sched_setaffinity(0, cpus[1:])
    try:
        yield cpus[0]
    finally:
        os.sched_setaffinity(0, cpus)


def prepare(cpu: int = -1) -> None:
    """What a child does first. `cpu`: where it is to run; -1: where its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uninstall()  # trio's own is to be trio's own, whatever the environment says
    if sys.platform == "linux" and cpu >= 0:
        os.sched_setaffinity(0, {cpu})
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
            most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
