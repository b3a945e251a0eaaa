"""An operation that a task, or a function that does the next step, waits for.

Rules of this file: what a completion does is `finish`, and nothing else. It is called once for each
completion, in the reap, and runs no user code.
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

# trio needs nothing of an outcome but unwrap(); an Outcome object for each wake-up would be one
# more allocation.
_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class TaskOperation(Operation):
    """An operation, and who waits for it.

    It is its own outcome: trio calls `unwrap` when the task resumes.

    Attributes:
        engine: performs it, or did so last.
        way: the direction that it belongs to. A weak reference, since the direction refers to the
            operation: a forgotten stream is freed at once.
        task: waits for the completion.
        then: called on completion, whether a task waits or not.
        owed: a call has had it performed and has not yet got the result.
        memory: where a receive without a provided buffer puts its bytes; released by the call.
        by_trio: it is a poll whose task is waiting by trio's epoll instead.
    """

    __slots__ = ("by_trio", "way")

    def __init__(self, engine: Any, opcode: int, fd: int, owner: object = None) -> None:
        super().__init__(opcode, fd, owner)
        self.engine = engine
        self.way: weakref.ref[Any] | None = None
        self.task: Any = None
        self.then: Callable[[], object] | None = None
        self.raise_cancel = None
        self.memory: memoryview | None = None
        self.owed: bool = False
        self.by_trio: bool = False

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for it, or the kernel has it.

        Never if its run is over, or is that of a forked child's parent.
        """
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

    # The accelerator has these in C (_c/hot.c).
    if hot is None:

        def finish(self) -> bool:
            """Called when it is done, or never will be. True: a task was woken."""
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
                # If the driver has failed, the task gets this before the kernel is done with it.
                self.owed = self.state.in_kernel
                if self.res == _ECANCELED:
                    raise_cancel()
            return self.res

        def __await__(self) -> Generator[Any, Any, int]:
            waiting = wait_task_rescheduled(self.abort)  # noqa: ASYNC105  (it is awaited)
            return waiting.__await__()

        def unlink(self) -> None:
            """Breaks the cycle of the operation and what it yields. In Python there is none."""
