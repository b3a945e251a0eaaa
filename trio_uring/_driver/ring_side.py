"""The side of an engine that faces its ring: submits the queue, finishes completions, fails.

Rules of this file:

- No exception leaves `flush` and `reap`: nobody else wakes tasks parked with Abort.FAILED. A
  failure wakes everyone with an error, and every later operation fails with it.
- What the kernel may still write to stays pinned by the ring.
- Whoever touches the ring, or finishes what was drained, is `busy`. A garbage collection may come
  at any point of that, and close streams: nobody touches the ring within.
- Nothing here knows the two ways to wait (`loop`, `task_way`); they call this.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

import trio

from .._accelerator import hot
from .._errors import RingBrokenError
from . import invariants
from .phases import FAILED, RUNNING, Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .._ring.figures import RingCounters
    from .._ring.protocol import Ring
    from .operation import TaskOperation

_log = logging.getLogger("trio_uring")

_ECANCELED = -errno.ECANCELED


class Hooks(Protocol):
    """What the engine tells a way to wait."""

    def queued(self) -> None:
        """There is something to flush, an operation or a cancel, and there was nothing before."""

    def idle(self) -> None:
        """Nothing is queued or in flight."""


if TYPE_CHECKING or hot is None:

    class _Fields:
        """The fields of an engine that the accelerator has in C."""

        by_calls: frozenset[int]
        check_written: Callable[[Any, Any], None] | None
        check_done: Callable[[Any, Any], None] | None

else:
    _Fields = hot.Engine


class RingSide(_Fields):
    """Feeds a ring, in the passes of one trio.run.

    Args:
        ring: belongs to the engine from now on.

    Attributes:
        hooks: those of the way to wait; None: it needs none, since the ring is trio's loop.
        phase: what may be done, see `phases`.
        failure: what made the engine fail.
        queue: operations that the ring has not seen, in the order in which they were made.
        errands: functions that destroyed coroutines and closed streams left, to be called at the
            beginning of the next pass.
        at_end: functions to call when the run is over; they must not raise.
        closing: functions that close descriptors, to be called after the next complete flush.
        dirty: the ring holds entries that were not flushed.
        woke: a task was woken in this pass.
        busy: the ring is being used, or tasks are being woken.
        done: operations drained and not yet finished; kept here so that a failure loses none.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.counters: RingCounters = ring.counters
        ring.now = time.monotonic()
        self.short_writes: int = 0
        self.passes: int = 0
        self.phase: Phase = RUNNING
        self.failure: BaseException | None = None
        self.hooks: Hooks | None = None
        self.queue: dict[TaskOperation, None] = {}
        self.done: list[Any] = []
        self.dirty: bool = False
        self.woke: bool = False
        self.busy: bool = False
        self.check_written: Callable[[Any, Any], None] | None = None
        self.check_done: Callable[[Any, Any], None] | None = None
        if invariants.CHECKED:
            self.check_written, self.check_done = invariants.check_written, invariants.check_done
        self.errands: list[Callable[[], object]] = []
        self.at_end: list[Callable[[], object]] = []
        self.closing: list[Callable[[], object]] = []
        self.thread: int = get_ident()
        self._trio = trio.lowlevel.current_trio_token()

    # -- the two halves of a pass

    def flush(self) -> None:
        """The end of a pass: submits everything queued to the kernel."""
        self.passes += 1
        self.woke = False
        if self.errands:
            self.run_errands()
            self.come_back()  # they may have woken tasks, and trio has decided how long to wait
        if self.queue or self.dirty:
            self.guard(self.flush_ring)

    def reap(self) -> None:
        """The beginning of a pass: takes and finishes every completion."""
        self.guard(self.reap_ring)

    def run_errands(self) -> None:
        """Does what was left to be done in a pass. The engine is not busy meanwhile."""
        try:
            while self.errands:
                self.errands.pop()()
        except BaseException as exc:
            self.fail(exc)

    def at_flush(self, function: Callable[[], object]) -> None:
        """Calls a function at the next flush.

        For destroyed coroutines and closed streams: it may be called from any thread, at any point.
        """
        self.errands.append(function)
        self.come_back()

    def flush_ring(self) -> None:
        self.write_queue()
        self.ring.flush()
        self.wrote()
        if self.dirty and self.hooks is not None:
            # The kernel was short of resources: the wait that follows must end at once.
            self.come_back()

    def write_queue(self, whole: bool = True) -> None:
        """Turns what is queued into entries.

        Args:
            whole: enter the kernel whenever the ring has no more room; else go no further.
        """
        ring, queue = self.ring, self.queue
        if hot is None or not hot.write_queue(ring, queue):
            self._write_each(whole)
        if self.check_written is not None:
            self.check_written(ring, queue)

    def _write_each(self, whole: bool) -> None:
        ring, queue = self.ring, self.queue
        # The queue may change meanwhile: the function of a refused operation may chain others, and
        # withdraw some.
        for op in list(queue):
            if op not in queue:
                continue
            try:
                taken = ring.submit(op) or (whole and ring.flush() and ring.submit(op))
            except RingBrokenError:
                raise
            except Exception as exc:  # this operation's own fault, and nobody else's
                queue.pop(op, None)
                self.refuse(op, exc)
                continue
            if not taken:
                break
            queue.pop(op, None)

    def wrote(self) -> None:
        """Called when the kernel was entered with what `write_queue` has written."""
        # An enter may take only a part. Then an entry may still name a descriptor that waits to be
        # closed.
        self.dirty = (
            self.ring.short or bool(self.queue) or (bool(self.closing) and self.ring.ready())
        )
        if self.closing and not self.dirty:
            self.close_deferred()

    def close_deferred(self) -> None:
        while self.closing:
            with contextlib.suppress(OSError):
                self.closing.pop()()

    def come_back(self) -> None:
        """Makes trio's next wait end at once. May be called from any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(_nothing, idempotent=True)

    def reap_ring(self) -> None:
        if self.ring.drain(self.done):
            self.dirty = True
            self.come_back()
        self.finish_done()

    def finish_done(self) -> None:
        """Wakes whoever waits for what was drained."""
        self.ring.now = time.monotonic()
        done = self.done
        if self.check_done is not None:
            self.check_done(self.ring, done)
        if hot is not None:
            self.woke = hot.finish_all(done) or self.woke
        else:
            for op in done:
                if op.finish():
                    self.woke = True
        done.clear()
        if self.hooks is not None:
            self.look_idle()

    def wait_in_kernel(self, seconds: float) -> None:
        """Blocks the thread until there is a completion."""

        def wait() -> None:
            self.ring.turn(seconds, self.done)
            self.finish_done()

        self.guard(wait)

    def finish(self, op: TaskOperation) -> None:
        """Wakes whoever waits for the operation."""
        if op.finish():
            self.woke = True

    def ask_to_stop(self, op: TaskOperation) -> None:
        """Asks the kernel to stop an operation. It learns of it at the next flush."""
        before, self.busy = self.busy, True
        try:
            self.ring.cancel(op)
        finally:
            self.busy = before
        self.dirty = True

    def look_idle(self) -> None:
        """Tells the hooks if nothing is queued or in flight."""
        if self.hooks is not None and not self.ring.table and not self.queue:
            self.hooks.idle()

    # -- when things go wrong

    def guard(self, step: Callable[[], None]) -> None:
        """Does a step of a pass. Whatever it raises counts as a failure of the ring."""
        if self.phase.works:
            self.busy = True
            try:
                step()
            except BaseException as exc:
                self.fail(exc)
            finally:
                self.busy = False

    def refuse(self, op: TaskOperation, exc: BaseException) -> None:
        """Ends an operation that will not be done: whoever waits for it gets `exc`."""

        def raise_it() -> NoReturn:
            raise exc

        if not op.state.in_kernel:
            op.let_go()
        if op.task is not None or op.then is not None:
            op.res, op.raise_cancel = _ECANCELED, raise_it
            self.finish(op)
        if self.hooks is not None:
            # In before_io_wait, trio has already decided how long to wait.
            self.come_back()

    def failed(self) -> trio.BrokenResourceError:
        """The error that every operation gets from a failed driver."""
        return trio.BrokenResourceError(f"{FAILED.refusal}: {self.failure}")

    def fail(self, exc: BaseException) -> None:
        """Gives up the ring: every operation fails, now and later."""
        self.failure = exc
        self.enter(FAILED)
        _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)
        for op in self.done:  # these were done before it happened
            self.finish(op)
        self.done.clear()
        stranded: list[Any] = [*self.ring.table.values(), *self.queue]
        for op in self.queue:
            if not op.state.in_kernel:  # the flush that failed may have submitted it
                op.let_go()
        self.queue.clear()
        for op in stranded:
            error = self.failed()
            error.__cause__ = exc
            self.refuse(op, error)
        self.dirty = False
        self.close_deferred()
        self.run_last_errands()
        if self.hooks is not None:
            self.hooks.idle()

    # -- the end

    def run_last_errands(self) -> None:
        """Does what was left for a pass, when there will be none."""
        while self.errands:
            with contextlib.suppress(Exception):
                self.errands.pop()()

    def enter(self, phase: Phase) -> None:
        """Enters the next phase."""
        self.phase = self.phase.to(phase)
        while phase.over and self.at_end:
            self.at_end.pop()()


def _nothing() -> None:
    pass
