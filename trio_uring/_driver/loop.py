"""The ring as trio's loop: an I/O manager that replaces the run's own, and wraps it.

A pass of trio's scheduler:

    tasks run            they queue operations and park
    get_events(timeout)  the queue becomes entries; ONE io_uring_enter submits them and waits;
                         completions are drained and their tasks rescheduled
    process_events       whatever trio's own epoll has to report

So there is one place to wait. This is what can wake trio when it sleeps there, what a lost wake-up
would look like, and which test would show it (all in tests/robustness):

- **A completion.** It ends the enter. If lost: a task hangs although its data is there, and no
  cancel scope can free it, since only that completion wakes it. Test: data from another process,
  100,000 times (test_wakeups).
- **trio's own epoll** has everything that is not ours: other sockets, run_sync_soon, finished
  threads, signals. One POLL_ADD in the ring watches it. Before each wait, `_pass` writes it again
  if it has fired, and does not wait if there is no room for it (`unwritten`). If lost: a program
  works while there is traffic, and hangs when it is quiet. Test: one event of each kind
  (test_mixed).
- **The time.** The next deadline is the timeout of the enter. If lost: a sleep lasts until the next
  packet comes. If reported too often: an idle run is busy, and a MockClock jumps too early. Tests:
  timers under load (test_mixed), test_idle.
- **A signal** ends the enter with EINTR. Its handler has written to trio's wake-up socket, so the
  next wait ends at once.
- **A cancel** of an operation in the kernel, and a close, come from tasks, or from the host of a
  guest run. What they have written is flushed before the next wait. If lost: a cancelled task does
  not return. Tests: test_every_cancel, and for the public way test_runs (a host's cancel).
- **A garbage collection** that destroys a coroutine or closes a stream may come at any time, in any
  thread, even between the last check and the wait. So what it leaves (`errands`) calls
  run_sync_soon (`come_back`), which wakes trio's epoll. If lost: the ring keeps a buffer, and a
  direction, for as long as the run is quiet, or a descriptor stays open. Tests: test_destroyed,
  test_halves_freed, test_collected.
- **A kernel that is short of resources** (EAGAIN, EBUSY) has not taken everything. It does not say
  when it has room again, so it is asked again after SHORT_PAUSE, spent waiting in trio's epoll. If
  lost: what is queued stays queued. Test: test_short_kernel.

There is no timer of ours: one that made up for a lost wake-up would only hide the defect.

Rules of this file:

- What get_events returns is true if and only if anything happened: trio takes a false value to mean
  "the time is up" (a MockClock jumps, wait_all_tasks_blocked returns).
- No Exception leaves get_events. If the ring has failed, or belongs to the parent of a forked
  child, trio's own manager does the work. Any other BaseException comes from a signal handler
  (sys.exit), not from the ring, and ends the run as it would without us.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .._accelerator import hot
from .._ring.figures import SHORT_PAUSE
from .._trio import Manager, epoll_fileno, renew_epoll

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ring_side import RingSide

# What get_events returns if anything happened but nothing is for trio's manager: it is true, and
# never passed on.
_HAPPENED: list[Any] = [None] if hot is None else hot.HAPPENED

if TYPE_CHECKING or hot is None:

    class _Fields:
        """The fields of a loop that the accelerator has in C."""

else:
    _Fields = hot.Loop


class Loop(_Fields, Manager):
    """The I/O manager of a run whose loop is the ring.

    Args:
        engine: the engine that has the ring.
        runner: trio's runner.
        end: called at the end of the run, before trio's own manager is closed.
    """

    def __init__(self, engine: RingSide, runner: Any, end: Callable[[], object]) -> None:
        inner = runner.io_manager
        if isinstance(inner, Loop):  # the parent's, in a forked child
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
        """Called in a forked child."""
        renew_epoll(self.inner)

    def _get_events(self, timeout: float) -> Any:
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
            active = timeout or engine.queue or engine.dirty or engine.woke
            if not active and ring.watching and not ring.ready():
                return ()
            engine.busy = True
            return self._pass(time.monotonic() + timeout, False)
        except Exception as exc:
            engine.fail(exc)
            return _HAPPENED
        finally:
            engine.busy = False

    # The accelerator has its own, which leaves to this one whatever is unusual.
    if TYPE_CHECKING or hot is None:
        get_events = _get_events

    def _pass(self, until: float, happened: bool) -> Any:
        engine, ring = self._engine, self._ring
        done, timeout = engine.done, until - time.monotonic()
        left = len(engine.queue)  # to be written before trio has its turn
        while True:
            if not ring.watching:
                ring.watch(self._epoll_fd)  # first: the queue may take all the room in each turn
            if engine.queue:
                left -= len(engine.queue)
                # As much as there is room for: its completions are taken before more is written, or
                # they would use up the provided buffers.
                engine.write_queue(whole=False)
                left += len(engine.queue)
            unwritten = bool(engine.queue) or not ring.watching  # there was no room
            again = ring.turn(0 if engine.woke or unwritten else timeout, done)
            if engine.dirty:
                engine.wrote()
            if done or again:
                happened = True
                engine.finish_done()
            if engine.queue and left > 0 and not ring.short:
                continue  # but what completions chain must not keep trio waiting
            if ring.watched:
                ring.watched = False
                return self.inner.get_events(0) or _HAPPENED
            if engine.woke:
                return _HAPPENED
            ring.now = time.monotonic()
            timeout = until - ring.now
            if ring.short:
                return self._pause(timeout)
            if timeout <= 0:
                return _HAPPENED if happened or unwritten else ()
            # Otherwise it was a signal, a cancel's own completion, or chained operations. No task
            # has anything to do, and a pass of trio costs more than the next step of a chain.

    def _pause(self, timeout: float) -> Any:
        """Waits until the kernel, which is short of resources, is to be asked again."""
        return self.inner.get_events(min(max(timeout, 0), SHORT_PAUSE)) or _HAPPENED

    def _process_events(self, events: Any) -> None:
        if events and events is not _HAPPENED:
            self.inner.process_events(events)

    if TYPE_CHECKING or hot is None:
        process_events = _process_events

    def close(self) -> None:
        """The end of the run."""
        try:
            self._end()
        finally:
            super().close()
