"""The ring as trio's loop: an I/O manager in the place of the run's own, and around it.

A pass of trio's scheduler:

    tasks run            they queue operations and park
    get_events(timeout)  what is queued becomes entries; ONE io_uring_enter submits them and waits; completions are drained and
                         their tasks rescheduled
    process_events       what trio's own epoll had to say

trio's epoll instance is watched by a poll in the ring, and read only when that has fired. So there
is one place to wait, and no descriptor, timer, instrument or task of ours that could fail to wake
it.

Rules of this file:

- What get_events returns is true if and only if anything happened: trio takes false for "the time
  is up" (a MockClock jumps, wait_all_tasks_blocked returns).
- No Exception leaves it. A ring that has failed, or is a forked parent's, is out of the way: trio's
  own manager goes on. What is not an Exception is not the ring's either: it is a signal handler's
  (sys.exit), and ends the run as it always does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .._ring.protocol import SHORT_PAUSE
from .._trio import Manager, epoll_fileno, renew_epoll

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._ring.protocol import Ring
    from .ring_side import RingSide

_HAPPENED: list[Any] = [None]  # true, and nothing that trio's manager knows


class Loop(Manager):
    """The I/O manager of a run whose ring is its loop.

    Args:
        engine: whose ring it is.
        runner: trio's.
        end: called at the end of the run, before trio's own manager is closed.
    """

    def __init__(self, engine: RingSide, runner: Any, end: Callable[[], object]) -> None:
        inner = runner.io_manager
        if isinstance(inner, Loop):  # of the process that this one was forked from
            inner = inner.inner
        super().__init__(inner)
        self._epoll_fd = epoll_fileno(inner)
        self._engine = engine
        self._ring = engine.ring
        self._runner = runner
        self._end = end

    def start(self) -> None:
        self._runner.io_manager = self

    def disown(self) -> None:
        """In a forked child."""
        renew_epoll(self.inner)

    def get_events(self, timeout: float) -> Any:
        engine, ring = self._engine, self._ring
        if not engine.phase.works:
            return self.inner.get_events(timeout)
        try:
            engine.passes += 1
            engine.woke = False
            if engine.errands:
                engine.run_errands()
                if not engine.phase.works:
                    return _HAPPENED
            busy = timeout or engine.queue or engine.dirty
            if not busy and ring.watching and not ring.ready():
                return ()
            return self._pass(engine, ring, timeout)
        except Exception as exc:
            engine.fail(exc)
            return _HAPPENED

    def _pass(self, engine: RingSide, ring: Ring, timeout: float) -> Any:
        until, happened, done = time.monotonic() + timeout, False, engine.done
        while True:
            if engine.queue:
                engine.write_queue()
            if not ring.watching:
                ring.watch(self._epoll_fd)
            unwritten = bool(engine.queue) or not ring.watching  # there was no room
            again = ring.turn(0 if engine.woke or unwritten else timeout, done)
            if engine.dirty:
                engine.wrote()
            if done or again:
                happened = True
                engine.finish_done()
            if ring.watched:
                ring.watched = False
                return self.inner.get_events(0) or _HAPPENED
            if engine.woke:
                return _HAPPENED
            ring.now = time.monotonic()
            timeout = until - ring.now
            if ring.short:
                return self.inner.get_events(min(max(timeout, 0), SHORT_PAUSE)) or _HAPPENED
            if timeout <= 0:
                return _HAPPENED if happened or unwritten else ()
            # Else it was a signal, a cancel's own completion, or chained operations: no task has
            # anything to do, and a pass of trio's would cost more than the next step of a chain.

    def process_events(self, events: Any) -> None:
        if events and events is not _HAPPENED:
            self.inner.process_events(events)

    def close(self) -> None:
        """The end of the run."""
        try:
            self._end()
        finally:
            super().close()
