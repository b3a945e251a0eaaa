"""An operation that somebody waits for: a task, or a function that does the next step.

Rules of this file: a completion has one meaning, `finish`. It is called once for each completion,
in the reap, and runs no code of the user's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from trio.lowlevel import Abort, enable_ki_protection, reschedule, wait_task_rescheduled

from .._accelerator import hot
from .._ring.op import Operation

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Generator
    from typing import NoReturn

    import trio

_ECANCELED = -errno.ECANCELED

# trio asks of an outcome that it has unwrap(), nothing else; an Outcome object for each wake-up
# would be one more allocation.
_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class TaskOperation(Operation):
    """An operation, and who waits for it. It is its own outcome: trio calls `unwrap` when the task
    resumes.

    Attributes:
        engine: performs it, or did last.
        way: the direction whose operation it is. Weak, since the direction has it: a stream that is
            forgotten is freed at once.
        task: waits for the completion.
        then: is called with the completion, whether a task waits or not.
        owed: a call has had it performed, and has not had the result.
        memory: where a receive puts its bytes that has no provided buffer; the call's, to its end.
        by_trio: a poll whose task waits by trio's own means instead.
    """

    __slots__ = ("by_trio", "engine", "memory", "way")

    def __init__(self, engine: Any, opcode: int, fd: int, owner: object = None) -> None:
        super().__init__(opcode, fd, owner)
        self.engine = engine
        self.way: weakref.ref[Any] | None = None
        self.task = self.then = self.raise_cancel = None
        self.memory: memoryview | None = None
        self.owed = self.by_trio = False

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for it, or the kernel has it. A run that is over, or the parent's
        of a forked child, has nothing."""
        waits = self.task is not None or self.state.in_kernel or self.by_trio
        return waits and not self.engine.phase.over

    @enable_ki_protection
    def abort(self, raise_cancel: Callable[[], NoReturn]) -> Abort:
        engine = self.engine
        if engine.phase.over or engine.withdraw(self):
            self.task, self.owed = None, False
            return Abort.SUCCEEDED
        self.raise_cancel = raise_cancel
        engine.cancel(self)
        return Abort.FAILED

    def let_go(self) -> None:
        """Drops the buffers of an operation that the ring does not hold."""
        self.buffer = self.buffers = self.pin = None

    # The accelerator has these in C (_c/hot.c).
    if hot is None:

        def finish(self) -> bool:
            """It is done, or never will be. True: a task was woken."""
            then, task = self.then, self.task
            if then is not None:
                self.then = None
                then()
            if task is None:
                return False
            self.task = None
            _reschedule(task, self)
            return True

        def unwrap(self) -> int:
            raise_cancel = self.raise_cancel
            if raise_cancel is None:
                self.owed = False
            else:
                self.raise_cancel = None
                # A driver that has failed tells it before the kernel does, which may do so later.
                self.owed = self.state.in_kernel
                if self.res == _ECANCELED:
                    raise_cancel()
            return self.res

        def __await__(self) -> Generator[Any, Any, int]:
            return wait_task_rescheduled(self.abort).__await__()

        def unlink(self) -> None:
            """Ends the circle of the operation and what it yields; there is none in Python."""
