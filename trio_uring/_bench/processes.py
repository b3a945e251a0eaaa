"""Child processes that cannot outlive a benchmark, pinned to a core.

Rules of this file: nothing waits without a deadline, and every child is killed on the way out,
whatever happened. What a child wrote to stderr is not lost: it becomes part of the error.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

# Importing and binding, or connecting thousands of times, on a machine that is busy.
START_SECONDS_MAX = 60.0
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


class Child:
    """A child process on one core, with its lines read against a deadline and its stderr kept for
    the error message.

    Leaving the `with` block kills it, and adds its last words to a RunError on its way through;
    `wait_for_exit` is how it ends when all is well.
    """

    def __init__(
        self, name: str, command: list[str], core: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._buffer = b""
        # `_end` closes it. Not a pipe: nobody reads it until the end.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
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

    def go_on(self) -> None:
        """Send it the line that it waits for."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RunError(f"{self.name} ended before it was told to go on") from None

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
