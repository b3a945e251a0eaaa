"""One worker's process, as the supervisor sees it: started, ready, asked to end, ended.

Rules of this file: a process is started by executing Python, never by a fork that goes on, and
waited for by the one task that started it. Whatever happens to that task, the process does not
outlive it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from .._errors import IncompleteReadError
from ..framing import FrameError
from .channel import ANSWER_SECONDS, Order, receive_message, send_message
from .signals import SIGKILL

if TYPE_CHECKING:
    from collections.abc import Callable

_LAST_WORDS_SECONDS = 1.0  # for what a dead process has sent
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, IncompleteReadError, FrameError)
# What a terminal signals is ignored from the beginning: importing takes a while. The package is
# imported from wherever the supervisor has it.
_START = (
    "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGHUP)]; "
    "import sys; sys.path.insert(0, {!r}); from trio_uring._workers.child import start; start({})"
)
_PACKAGES = str(Path(__file__).parents[2])
# Of a service manager, for the supervisor alone.
_NOT_INHERITED = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip


class _Question:
    """For a worker's metrics."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.families: list[Any] | None = None


class Process:
    """A worker's process. `live` starts it and returns when it has ended; everything else is for
    other tasks.

    Attributes:
        ready: set when the worker has said so.
        ended: set when the process is gone.
        asked: somebody has asked it to end.
        killed: that was not enough.
        failure: why it ended before it was ready, if it or the supervisor has said so; else "".
        details: a traceback for that; or "".
        unloadable: the program could not be loaded.
        lifetime: seconds from its start to its end.
        served: seconds from when it was ready to its end; 0 if it never was.
        pid: 0 until it is started.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.ready, self.ended = trio.Event(), trio.Event()
        self.asked = self.killed = self.unloadable = False
        self.failure = self.details = ""
        self.lifetime = self.served = 0.0
        self.pid = 0
        self._ready_at = math.inf
        self._process: trio.Process | None = None
        self._stream: trio.SocketStream | None = None
        self._sending = trio.Lock()  # the stream refuses a second sender
        self._settled = trio.Event()  # ready or ended
        self._question: _Question | None = None  # the one that is open

    def __str__(self) -> str:
        return f"worker {self.order.number} (pid {self.pid})" if self.pid else "a worker"

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.failure:
            return self.failure
        status = None if self._process is None else self._process.returncode
        if status is None:
            return "it was not started"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    async def live(self) -> None:
        """Starts it, and waits until it has ended.

        Cancellation: it is killed.
        """
        born = trio.current_time()
        try:
            self._process, self._stream = await self._start()
            self.pid = self._process.pid
            if self.asked:  # meanwhile
                self._signal(signal.SIGTERM)
            async with self._stream:
                await self._attend(self._process, self._stream)
        except OSError as exc:
            self.failure = f"no process could be started: {exc}"
        finally:
            now = trio.current_time()
            self.lifetime, self.served = now - born, max(now - self._ready_at, 0.0)
            self.ended.set()
            self._settled.set()
            if self._question is not None:
                self._question.answered.set()

    async def _start(self) -> tuple[trio.Process, trio.SocketStream]:
        if sys.platform == "win32":
            raise AssertionError
        ours, theirs = socket.socketpair()
        try:
            process = await trio.lowlevel.open_process(
                _command(self.order, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *self.order.listeners),
                env={k: v for k, v in os.environ.items() if k not in _NOT_INHERITED},
            )
        except RuntimeError as exc:  # of threading: trio forks in a thread
            ours.close()
            raise OSError(errno.EAGAIN, str(exc)) from exc
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def _attend(self, process: trio.Process, stream: trio.SocketStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                silent = trio.Event()
                nursery.start_soon(self._listen, stream, silent)
                await self._tell(stream, self.order.as_message())
                await process.wait()
                # A child of the worker may hold its end open.
                with trio.move_on_after(_LAST_WORDS_SECONDS):
                    await silent.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def _tell(self, stream: trio.SocketStream, message: dict[str, Any]) -> None:
        """Sends a message; to a worker that is gone it goes nowhere."""
        with contextlib.suppress(*_GONE):
            async with self._sending:
                await send_message(stream, message)

    async def _listen(self, stream: trio.SocketStream, silent: trio.Event) -> None:
        with contextlib.suppress(*_GONE):
            while True:
                message = await receive_message(stream)
                if "ready" in message:
                    self._ready_at = trio.current_time()
                    self.ready.set()
                    self._settled.set()
                elif "failed" in message:
                    self.failure, self.details = message["failed"], message["details"]
                    self.unloadable = True
                elif self._question is not None:
                    self._question.families = message["metrics"]
                    self._question.answered.set()
                    self._question = None
        silent.set()

    # -- for other tasks

    async def settle(self, seconds: float) -> bool:
        """Waits until it is ready, or has ended; kills it if that takes longer than this.

        Returns:
            Whether it is ready, and has not been asked to end meanwhile.
        """
        with trio.move_on_after(seconds) as scope:
            await self._settled.wait()
        if scope.cancelled_caught and not self._settled.is_set():
            self.failure = f"it did not call worker.ready() within {seconds:g} s"
            self.kill()
            await self.ended.wait()
        return self.ready.is_set() and not self.asked and not self.ended.is_set()

    async def stop(self, seconds: float) -> None:
        """Asks it to end, waits, and kills it if it has not ended by then."""
        self.asked = True
        self._signal(signal.SIGTERM)
        with trio.move_on_after(seconds):
            await self.ended.wait()
        if not self.ended.is_set():
            self.killed = True
            self.kill()
            await self.ended.wait()

    async def cut_short(self, seconds: float) -> None:
        """Asks it to drop what it is doing, waits, and kills it if it has not ended by then."""
        self.asked = True
        with trio.move_on_after(seconds):
            if self._stream is not None:
                await self._tell(self._stream, {"ask": "cut short"})
            await self.ended.wait()
        if not self.ended.is_set():
            self.killed = True
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self.asked = True
        self._signal(SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Not after its end: trio's process knows, and its number may be another one's by now.
        if self._process is not None:
            self._process.send_signal(number)

    async def metrics(self) -> list[Any] | None:
        """Its families; None: it does not answer, or has none."""
        if self._stream is None or self.ended.is_set() or not self.ready.is_set():
            return None
        question = self._question
        if question is None:
            # One at a time: those that a stopped process does not read would pile up.
            question = self._question = _Question()
            # Whole, or not at all. It does not wait: one question fits into any buffer.
            with trio.CancelScope(shield=True):
                await self._tell(self._stream, {"ask": "metrics"})
        with trio.move_on_after(ANSWER_SECONDS):
            await question.answered.wait()
        return question.families


def _command(order: Order, fd: int) -> list[str]:
    # What multiprocessing uses, too: the options of this Python, such as -X dev.
    options: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags", list)
    # The last words are for whoever looks at the list of processes.
    return [
        sys.executable,
        *options(),
        "-c",
        _START.format(_PACKAGES, fd),
        f"trio_uring worker {order.number} of {order.target}",
    ]
