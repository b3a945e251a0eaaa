"""The side of an engine that faces its ring: what is queued enters the kernel, what is done is
finished, and what goes wrong is told.

Rules of this file:

- No exception leaves `flush` and `reap`: tasks parked with Abort.FAILED are woken by nobody else. A
  failure wakes everyone with an error, and every later operation fails with it.
- What the kernel may still write to stays pinned by the ring.
- Nothing here knows a way to wait (`loop`, `task_way`), which calls it.
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

    from .._ring.protocol import Ring
    from .operation import TaskOperation

_log = logging.getLogger("trio_uring")

_ECANCELED = -errno.ECANCELED


class Hooks(Protocol):
    """What a way to wait wants to be told."""

    def queued(self) -> None:
        """An operation, or a cancel, is there to be flushed, and was not before."""

    def idle(self) -> None:
        """Nothing is queued or in flight."""


class RingSide:
    """Feeds a ring, in the passes of one trio.run.

    Args:
        ring: the engine's own from now on.

    Attributes:
        hooks: of the way to wait; None: it needs none, as the ring is trio's loop.
        phase: what may be done, see `phases`.
        failure: what made the engine fail.
        queue: operations that the ring has not seen, in the order in which they were made.
        errands: what destroyed coroutines have left to be done in a pass.
        at_end: called when the run is over; they must not raise.
        closing: close descriptors after the next whole flush.
        dirty: the ring holds entries that were not flushed.
        woke: a task was woken, in this pass.
        done: drained and not yet finished; here, so that a failure in between loses none.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.counters = ring.counters
        ring.now = time.monotonic()
        self.short_writes = self.passes = 0
        self.phase: Phase = RUNNING
        self.failure: BaseException | None = None
        self.hooks: Hooks | None = None
        self.queue: dict[TaskOperation, None] = {}
        self.done: list[Any] = []
        self.dirty = self.woke = False
        self.errands: list[Callable[[], object]] = []
        self.at_end: list[Callable[[], object]] = []
        self.closing: list[Callable[[], object]] = []
        self.thread = get_ident()
        self._trio = trio.lowlevel.current_trio_token()

    # -- the two halves of a pass

    def flush(self) -> None:
        """The end of a pass: everything queued goes to the kernel."""
        self.passes += 1
        self.woke = False
        if self.errands:
            self.run_errands()
        if self.queue or self.dirty:
            self.guard(self.flush_ring)

    def reap(self) -> None:
        """The beginning of a pass: every completion is finished."""
        self.guard(self.reap_ring)

    def run_errands(self) -> None:
        """What destroyed coroutines have left to be done in a pass."""
        self.guard(self._run_errands)

    def _run_errands(self) -> None:
        while self.errands:
            self.errands.pop()()

    def at_flush(self, function: Callable[[], object]) -> None:
        """Has a function called when this pass is flushed. For destroyed coroutines: from any
        thread, at any point."""
        self.errands.append(function)
        self.come_back()

    def flush_ring(self) -> None:
        self.write_queue()
        self.ring.flush()
        self.wrote()
        if self.dirty and self.hooks is not None:
            # The kernel was short of something: the wait that follows must end at once.
            self.come_back()

    def write_queue(self) -> None:
        """What is queued becomes entries, as far as the ring takes it."""
        ring, queue = self.ring, self.queue
        # A garbage collection in between may destroy a coroutine, and withdraw its operation; the
        # function of a refused one may chain others.
        for op in list(queue):
            if op not in queue:
                continue
            try:
                taken = ring.submit(op) or (ring.flush() and ring.submit(op))
            except RingBrokenError:
                raise
            except Exception as exc:  # this operation's own fault, and nobody else's
                queue.pop(op, None)
                self.refuse(op, exc)
                continue
            if not taken:
                break
            queue.pop(op, None)
        if invariants.CHECKED:
            invariants.check_written(ring, queue)

    def wrote(self) -> None:
        """After the kernel was entered with what `write_queue` has written."""
        # One enter may take a part; then an entry may still name a descriptor that is to be closed.
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
        """Makes trio's next wait end at once. From any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(_nothing, idempotent=True)

    def reap_ring(self) -> None:
        if self.ring.drain(self.done):
            self.dirty = True
            self.come_back()
        self.finish_done()

    def finish_done(self) -> None:
        """Tells whoever waits for what was drained."""
        self.ring.now = time.monotonic()
        done = self.done
        if invariants.CHECKED:
            invariants.check_done(self.ring, done)
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
        """Tells whoever waits for it."""
        if op.finish():
            self.woke = True

    def look_idle(self) -> None:
        """Tells if nothing is queued or in flight."""
        if self.hooks is not None and not self.ring.table and not self.queue:
            self.hooks.idle()

    # -- when things go wrong

    def guard(self, step: Callable[[], None]) -> None:
        """Does a step of a pass. What goes wrong there is the ring's failure."""
        if self.phase.works:
            try:
                step()
            except BaseException as exc:
                self.fail(exc)

    def refuse(self, op: TaskOperation, exc: BaseException) -> None:
        """Tells whoever waits for an operation that it will not be done."""

        def raise_it() -> NoReturn:
            raise exc

        if not op.state.in_kernel:
            op.let_go()
        if op.task is not None or op.then is not None:
            op.res, op.raise_cancel = _ECANCELED, raise_it
            self.finish(op)
        if self.hooks is not None:
            # In before_io_wait, trio has made up its mind how long to wait.
            self.come_back()

    def failed(self) -> trio.BrokenResourceError:
        """What a failed driver says."""
        return trio.BrokenResourceError(f"{FAILED.refusal}: {self.failure}")

    def fail(self, exc: BaseException) -> None:
        """The ring is gone."""
        self.failure = exc
        self.enter(FAILED)
        _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)
        for op in self.done:  # these were done before it happened
            self.finish(op)
        self.done.clear()
        stranded: list[Any] = [*self.ring.table.values(), *self.queue]
        for op in self.queue:
            if not op.state.in_kernel:  # an earlier flush of this pass may have handed it over
                op.let_go()
        self.queue.clear()
        for op in stranded:
            error = self.failed()
            error.__cause__ = exc
            self.refuse(op, error)
        self.dirty = False
        self.close_deferred()
        if self.hooks is not None:
            self.hooks.idle()

    # -- the end

    def enter(self, phase: Phase) -> None:
        """The run goes on to its end, or this is a forked child."""
        self.phase = self.phase.to(phase)
        while phase.over and self.at_end:
            self.at_end.pop()()


def _nothing() -> None:
    pass
