"""Chained operations: what completes one is a function, called in the reap, which may queue the next. No task wakes in between.

Rules of this file:

- The function of a chained operation is called once, whatever becomes of the operation: see `ChainEngine.chain`. Only whoever
  withdraws the operation is not told.
- It is called when the engine's own lists may be changed: never from within the loop over the queue.
- A chain may not keep the thread: a reap goes on with it for CHAIN_SECONDS at most, and not while a task has something to do.
"""

from __future__ import annotations

import errno
from threading import get_ident
from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection, reschedule

from ._engine import Engine, TaskOperation
from ._pipes import Pipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import trio

    from ._contract import Ring

CHAIN_SECONDS = 0.00025  # that one reap may go on with chains; measured in docs/design.md

_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class ChainedOperation(TaskOperation):
    """An operation whose completion calls `finished`, in the reap.

    Attributes:
        closed: called when the stream whose operation it is was closed, whether the operation is waiting or not.
    """

    __slots__ = ("closed", "finished", "waiting")

    def __init__(self, driver: Engine, opcode: int, fd: int, owner: object, finished: Callable[[], object]) -> None:
        super().__init__(driver, opcode, fd, owner)
        self.waiting = False
        self.finished = finished
        self.closed: Callable[[], object] | None = None
        self.dispose = self.deliver

    def deliver(self, _: int = 0) -> None:
        if self.waiting:
            self.waiting = False
            self.finished()


class ChainEngine(Engine):
    """An engine that performs chained operations as well."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self._chained = False  # something was chained since the last reap began
        self.pipes = Pipes()
        self._at_flush: list[Callable[[], object]] = []
        self._undelivered: list[TaskOperation] = []  # chained operations that have ended without a completion

    @enable_ki_protection
    def chain(self, op: ChainedOperation) -> None:
        """Queues an operation whose completion calls `op.finished()`.

        It is called once: after the completion, and then `op.unwrap()` is the result; when the descriptor was closed before
        (the result is -ECANCELED); when the ring refuses the operation, the driver fails or the run is over (`op.unwrap()`
        raises or is -ECANCELED, and `op.state` tells whether the kernel may still have the buffers). It must not raise. It may
        chain further operations, `unchain` others, and `resume` a task.

        Raises:
            trio.BrokenResourceError: the driver has failed; RuntimeError: the run is over. The function is not called.
        """
        if self.attention is not None or get_ident() != self.thread:
            self._attend(op)
        if not self.queue:
            self.rehook()
        op.raise_cancel = None
        op.waiting = self._chained = True
        self.queue.append(op)

    @enable_ki_protection
    def unchain(self, op: ChainedOperation) -> None:
        """Stops a chained operation. What the ring has not seen is withdrawn; any other is still to be waited for."""
        if not op.waiting or self.failure is not None:  # a failed driver tells everyone by itself
            return
        if op.state.in_kernel:
            self.cancel(op)
        elif op in self.queue:  # else it is done, and about to be delivered in this reap
            self.withdraw(op)
            op.waiting = False

    def at_flush(self, function: Callable[[], object]) -> None:
        """Has a function called when this pass is flushed. For destroyed coroutines: from any thread, at any point."""
        self._at_flush.append(function)

    def resume(self, task: trio.lowlevel.Task, outcome: Any) -> None:
        """Wakes a task on behalf of chained operations."""
        self._woke = True
        _reschedule(task, outcome)

    # -- what the engine does, and then the functions of the chained operations concerned

    def reap(self) -> None:
        self._woke = False
        super().reap()
        if self._chained:
            self._guard(self._go_on)

    def _cancel_abandoned(self) -> None:
        super()._cancel_abandoned()
        while self._at_flush:
            self._at_flush.pop()()

    def flush(self) -> None:
        if self._at_flush:
            self._guard(self._cancel_abandoned)
        super().flush()

    def _go_on(self) -> None:
        """What the reap has chained enters the kernel now: a pass of trio's for each step would cost more than the step."""
        until = self.ring.now + CHAIN_SECONDS
        while self._chained and not self._woke and self.ring.now < until:
            self._chained = False
            self._flush_ring()
            self._reap_ring()
        self._chained = False

    def _flush_ring(self) -> None:
        super()._flush_ring()
        self._deliver()

    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        ops = tuple(ops)
        super().release(ops, close)
        self._deliver()
        for op in ops:
            if isinstance(op, ChainedOperation) and op.closed is not None:
                op.closed()

    def fail(self, exc: BaseException) -> None:
        super().fail(exc)
        self._deliver()

    def give_up_queue(self) -> None:
        """At the end of the run: nothing of what is queued will be done."""
        queue, self.queue = self.queue, []
        for op in queue:
            op.task, op.res = None, -errno.ECANCELED
            self._wake(op)
        self._deliver()

    def _wake(self, op: TaskOperation) -> None:
        if op.waiting:
            self._undelivered.append(op)
        else:
            super()._wake(op)

    def _deliver(self) -> None:
        while self._undelivered:
            op = self._undelivered.pop()
            if op.dispose is not None:
                op.dispose(op.res)
