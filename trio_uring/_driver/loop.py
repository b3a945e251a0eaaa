"""The ring as trio's loop: an I/O manager in the place of the run's own, and around it.

A pass of trio's scheduler:

    tasks run            they queue operations and park
    get_events(timeout)  what is queued becomes entries; ONE io_uring_enter submits them and waits;
                         completions are drained and their tasks rescheduled
    process_events       what trio's own epoll had to say

So there is one place to wait. Who can wake trio when it sleeps there, what the loss of each would
look like, and which test shows it (all in tests/robustness):

- **A completion.** The kernel ends the enter when one is there. Lost, a task hangs though its data
  has come, and no cancel scope can free it, since it waits for that completion alone. Shown by data
  from another process, 100,000 times: test_wakeups.
- **trio's own epoll**, which has everything that is not ours: other sockets, run_sync_soon, threads
  that are done, signals. One POLL_ADD in the ring watches it. `_pass` writes it again before each
  wait, and if there is no room for it, does not wait (`unwritten`). Lost, a program works as long
  as there is traffic, and hangs when it is quiet. Shown by test_mixed, with one event of each kind.
- **The time.** Deadlines are the timeout of the enter. Lost, a sleep is as long as the next packet
  takes; too often told, a run that has nothing to do is busy, and a MockClock jumps too early.
  Shown by test_mixed (timers under load) and test_idle.
- **A signal** ends the enter with EINTR. Its handler has written to trio's epoll, so it waits on,
  and finds that.
- **A cancel** of what is in the kernel, and a close, are made by tasks, or by the host of a guest
  run. What they have written is flushed before the next wait. Lost, a cancelled task stays. Shown
  by test_every_cancel, and for the public way by test_runs (a host's cancel).
- **A garbage collection** that destroys a coroutine may come at any time, in any thread, also
  between the last look and the wait. So it calls run_sync_soon (`come_back`), which is trio's
  epoll. Lost, the ring keeps a buffer, and a direction, for as long as the run is quiet. Shown by
  test_destroyed and test_halves_freed.
- **A kernel that is short of something** (EAGAIN, EBUSY) has not taken all. Nobody tells when it
  has room again, so it is asked after SHORT_PAUSE, and trio's epoll waits meanwhile. Lost, what is
  queued stays queued. Shown by test_short_kernel.

Nothing of ours ticks: a timer that hid a lost wake-up would hide the defect, too.

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

from .._ring.figures import SHORT_PAUSE
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
