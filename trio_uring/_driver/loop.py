"""The ring as trio's loop: an I/O manager in the place of the run's own, and around it.

A pass of trio's scheduler:

    tasks run            they queue operations and park
    get_events(timeout)  what is queued becomes entries; ONE io_uring_enter submits them and waits;
                         completions are drained and their tasks rescheduled
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
from .._trio import Manager, renew_epoll, trios_own

if TYPE_CHECKING:
    from .._ring.protocol import Ring
    from .run import Driver

_HAPPENED: list[Any] = [None]  # true, and nothing that trio's manager knows


class Loop(Manager):
    """The I/O manager of a run whose ring is its loop."""

    def __init__(self, driver: Driver, runner: Any) -> None:
        inner = runner.io_manager
        if isinstance(inner, Loop):  # of the process that this one was forked from
            inner = inner.inner
        super().__init__(inner)
        self._epoll_fd = trios_own(inner)._epoll.fileno()
        self._driver = driver
        self._ring = driver.ring
        runner.io_manager = self

    def get_events(self, timeout: float) -> Any:
        driver, ring = self._driver, self._ring
        if driver.closed or driver.failure is not None:
            return self.inner.get_events(timeout)
        try:
            driver.passes += 1
            driver.woke = False
            if driver.has_errands:
                driver.run_errands()
            if (
                not timeout
                and not driver.queue
                and not driver.dirty
                and ring.watching
                and not ring.ready()
            ):
                return ()
            return self._pass(driver, ring, timeout)
        except Exception as exc:
            driver.fail(exc)
            return _HAPPENED

    def _pass(self, driver: Driver, ring: Ring, timeout: float) -> Any:
        until, happened, done = time.monotonic() + timeout, False, driver.done
        while True:
            if driver.queue:
                driver.write_queue()
            if not ring.watching:
                ring.watch(self._epoll_fd)
            unwritten = bool(driver.queue) or not ring.watching  # there was no room
            again = ring.turn(0 if driver.woke or unwritten else timeout, done)
            if driver.dirty:
                driver.wrote()
            if done or again:
                happened = True
                driver.wake_done()
            if ring.watched:
                ring.watched = False
                return self.inner.get_events(0) or _HAPPENED
            if driver.woke:
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
            self._driver.close()
        finally:
            super().close()

    # -- what the driver asks of a way to wait

    def start(self) -> None:
        pass

    def disown(self) -> None:
        renew_epoll(self.inner)
