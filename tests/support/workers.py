"""A supervisor as a process, and what it says.

Rules of this file: nothing waits without a deadline, and nothing is slept through: what a test
waits for is a line of the supervisor's log, or the end of a process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_MAX = 60
READY = r"worker (\d+) \(pid (\d+)\) is ready"
# Answers each message with the version of the program, the worker's number and its process.
APP = """
import os
VERSION = {version!r}

async def main(worker):
    async def handler(stream):
        async for chunk in stream:
            await stream.send_all(f"{{VERSION}} {{worker.number}} {{os.getpid()}}\\n".encode())
    await worker.serve(handler)
"""


class Supervisor:
    """A command in a process group of its own, whose standard error is read as it comes."""

    def __init__(
        self, command: list[str], folder: Path, stdin: Any = None, **variables: str
    ) -> None:
        root = str(Path(trio_uring.__file__).parents[1])
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, **variables},
            stdin=stdin,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._come: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as errors:
            for line in errors:
                self._come.put(line.rstrip("\n"))
        self._come.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line that this is found in; those before it are in `lines`."""
        while True:
            line = self._come.get(timeout=SECONDS_MAX)
            assert line is not None, "\n".join(["it ended before it said so:", *self.lines])
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def ready(self) -> tuple[int, int]:
        """The next worker that is ready: its number and its process."""
        found = self.wait_for(READY)
        return int(found[1]), int(found[2])

    def end(self, *signals: signal.Signals) -> int:
        """Sends the signals, waits for the end, and returns the exit status."""
        for each in signals:
            self.process.send_signal(each)
        status = self.process.wait(SECONDS_MAX)
        self._reader.join(SECONDS_MAX)
        while (line := self._come.get(timeout=SECONDS_MAX)) is not None:
            self.lines.append(line)
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS_MAX)


@contextlib.contextmanager
def supervisor(
    command: list[str], folder: Path, stdin: Any = None, **variables: str
) -> Iterator[Supervisor]:
    """A supervisor, which is killed with its workers at the end of the block if it still runs."""
    one = Supervisor(command, folder, stdin, **variables)
    try:
        yield one
    finally:
        one.kill()
        print("\n".join(one.lines))


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, workers: int = 2) -> Iterator[tuple[Supervisor, int]]:
    """`serve app:main` on a port of the kernel's choice. All workers are ready."""
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", str(workers)]
    command += ["--bind", "127.0.0.1:0", *arguments]
    with supervisor(command, folder) as one:
        port = int(one.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        one.wait_for("all workers are ready")
        yield one, port


def pids(one: Supervisor) -> dict[int, int]:
    """The last process of each worker that was seen to be ready."""
    found = [re.search(READY, line) for line in one.lines]
    return {int(each[1]): int(each[2]) for each in found if each}


def request(port: int, message: bytes = b"x") -> list[str]:
    """One connection, one request: the words of the answer."""
    with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as sock:
        sock.sendall(message)
        return answer(sock)


def answer(sock: socket.socket) -> list[str]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(1000)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    return data.decode().split()


def wait_for_end(pid: int) -> None:
    """Waits until a process that is not a child of this one is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll: Any = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(SECONDS_MAX * 1000), f"process {pid} is still there"
    finally:
        os.close(fd)
