"""A slot: one of the N workers, through all the processes that it is in the course of time.

Rules of this file: there is one current process, and beside it at most one that is to replace it.
Who changes `current` holds the lock, so a process that dies while it is being replaced is not
started a second time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .backoff import Backoff
    from .process import Process

_log = logging.getLogger("trio_uring")


class Slot:
    """Keeps one worker going.

    Args:
        number: which one.
        launch: makes a process and starts it.
        backoff: its failures.
        ready_seconds: how long a process may take until it is ready.
        give_up: called when there is no use in going on, with the reason, an exit status and a
            traceback or "".
    """

    def __init__(
        self,
        number: int,
        launch: Callable[[int], Process],
        backoff: Backoff,
        ready_seconds: float,
        give_up: Callable[[str, int, str], object],
    ) -> None:
        self.number = number
        self.current: Process | None = None
        self.restarts = 0
        self.first_ready = trio.Event()
        self._launch = launch
        self._backoff = backoff
        self._ready_seconds = ready_seconds
        self._give_up = give_up
        self._lock = trio.Lock()
        self._replaced = trio.Event()

    async def keep(self) -> None:
        """Starts a process, and another one whenever it ends by itself, until cancelled."""
        while True:
            async with self._lock:
                process, launched = self.current, False
                if process is None:
                    process, launched = self._launch(self.number), True
                    self.current = process
            if launched and await process.settle(self._ready_seconds):
                self._is_ready(process)
            await process.ended.wait()
            async with self._lock:
                if self.current is not process:  # it was replaced
                    continue
                self.current = None
            if not await self._after_failure(process):
                return

    def _is_ready(self, process: Process) -> None:
        _log.info("%s is ready", process)
        self.first_ready.set()

    async def _after_failure(self, process: Process) -> bool:
        """Waits before the next start. Returns False if there is to be none."""
        if process.unloadable and not self.first_ready.is_set():
            self._give_up(process.outcome, 2, process.details)
            return False
        _show(process)
        delay = self._backoff.failed(process.served)
        what = f"{process} has ended by itself after {process.lifetime:.1f} s: {process.outcome}"
        if delay is None:
            self._give_up(f"{what}; that was failure {self._backoff.failures} in a row", 1, "")
            return False
        _log.warning("%s; the next one is started in %g s", what, delay)
        self._replaced = trio.Event()
        with trio.move_on_after(delay):
            await self._replaced.wait()
        self.restarts += 1
        return True

    async def replace(self, stop: Callable[[Process], Awaitable[object]]) -> bool:
        """Starts a new process, and when it is ready, stops the old one (`await stop(old)`).

        Returns:
            False if the new one failed; the old one goes on.
        """
        async with self._lock:
            new = self._launch(self.number)
            if not await new.settle(self._ready_seconds):
                if not new.ended.is_set():
                    new.kill()
                _log.error("%s does not replace the old one: %s", new, new.outcome)
                _show(new)
                return False
            old, self.current = self.current, new
            self._backoff.reset()
            self._replaced.set()
            self._is_ready(new)
        if old is not None:
            await stop(old)
        return True


def _show(process: Process) -> None:
    """Logs the traceback of a program that could not be loaded."""
    if process.details:
        _log.error("%s:\n%s", process, process.details.rstrip())
