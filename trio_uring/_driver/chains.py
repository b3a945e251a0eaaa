"""Chained operations: what completes one is a function, called in the reap, which may queue the
next. No task wakes in between.

Rules of this file:

- The function of a chained operation is called once, whatever becomes of the operation: see
  `ChainEngine.chain`. Only whoever withdraws the operation is not told.
- It is called when the engine's own lists may be changed: never from within the loop over the
  queue.
"""

from __future__ import annotations

import errno
from threading import get_ident
from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection, reschedule

from .engine import Engine, TaskOperation
from .pipes import Pipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import trio

    from .._ring.protocol import Ring

_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class ChainedOperation(TaskOperation):
    """An operation whose completion calls `finished`, in the reap.

    Attributes:
        closed: called when the stream whose operation it is was closed, whether the operation is
            waiting or not.
    """

    __slots__ = ("closed", "finished", "waiting")

    def __init__(
        self, driver: Engine, opcode: int, fd: int, owner: object, finished: Callable[[], object]
    ) -> None:
        super().__init__(driver, opcode, fd, owner)
        self.waiting = False
        self.finished = finished
        self.closed: Callable[[], object] | None = None
        self.dispose = self.deliver

    def forget(self) -> None:
        """Nothing more is to be delivered: lets go of whoever would be told."""
        self.finished = _nothing
        self.dispose = self.closed = None

    def deliver(self, _: int = 0) -> None:
        if self.waiting:
            self.waiting = False
            self.finished()


def _nothing() -> None:
    pass


class ChainEngine(Engine):
    """An engine that performs chained operations as well."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring)
        self.pipes = Pipes()
        self._undelivered: list[
            TaskOperation
        ] = []  # chained operations that have ended without a completion

    @enable_ki_protection
    def chain(self, op: ChainedOperation) -> None:
        """Queues an operation whose completion calls `op.finished()`.

        It is called once: after the completion, and then `op.unwrap()` is the result; when the
        descriptor was closed before (the result is -ECANCELED); when the ring refuses the
        operation, the driver fails or the run is over (`op.unwrap()` raises or is -ECANCELED, and
        `op.state` tells whether the kernel may still have the buffers). It must not raise. It may
        chain further operations, `unchain` others, and `resume` a task.

        Raises:
            trio.BrokenResourceError: the driver has failed; RuntimeError: the run is over. The
            function is not called.
        """
        if self.attention is not None or get_ident() != self.thread:
            self._attend(op)
        if not self.queue and self.task_way is not None:
            self.task_way.rehook()
        op.raise_cancel = None
        op.waiting = True
        self.queue[op] = None

    @enable_ki_protection
    def unchain(self, op: ChainedOperation) -> None:
        """Stops a chained operation. What the ring has not seen is withdrawn; any other is still to
        be waited for."""
        if not op.waiting or self.failure is not None:  # a failed driver tells everyone by itself
            return
        if op.state.in_kernel:
            self.cancel(op)
        elif op in self.queue:  # else it is done, and about to be delivered in this reap
            self.withdraw(op)
            op.waiting = False

    def resume(self, task: trio.lowlevel.Task, outcome: Any) -> None:
        """Wakes a task on behalf of chained operations."""
        self.woke = True
        _reschedule(task, outcome)

    # -- what the engine does, and then the functions of the chained operations concerned

    def write_queue(self) -> None:
        super().write_queue()
        if self._undelivered:
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
        queue, self.queue = self.queue, {}
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
