"""The engine: queues operations, parks tasks on them, and withdraws them.

How operations enter the kernel, and what happens when they are done, is in `ring_side`. The engine
knows neither who waits for its ring (`loop`, `task_way`) nor who uses it (`_descriptors`).

Rules of this file:

- A task leaves an operation that the ring has seen only on that operation's own completion, as in
  trio's IOCP driver (`trio/_core/_io_windows.py`, wait_overlapped). A cancel is a request: abort
  asks the ring and returns Abort.FAILED; the completion is the truth. A result that arrived wins;
  only ECANCELED after a cancel raises Cancelled. Abort.SUCCEEDED is for an operation that is still
  in the queue.
- What touches the queue or the ring is protected from KeyboardInterrupt.
- A garbage collection may close streams and destroy coroutines at any point of ours or of trio's.
  So `release` and `abandon` wake no task, and while the engine is `busy` they only leave an errand.
- An operation that is not in the kernel holds no buffer: the caller may resize its buffers as soon
  as the call is over.
- The function of a chained operation is called once, whatever becomes of the operation. The only
  exception is `unchain`, if it can still withdraw the operation.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import (
    Abort,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._accelerator import hot
from .._ring.op import CLOSED_FD
from .._ring.opcodes import BY_READINESS, POLL_ALWAYS, Opcode
from .phases import FAILED, LATE, OVER, RUNNING
from .readiness import perform_by_readiness, wait_by_trio
from .ring_side import RingSide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import NoReturn

    from .._ring.protocol import Ring
    from .operation import TaskOperation

_ECANCELED = -errno.ECANCELED
_AWAITS_ITSELF = hot is not None  # an operation in Python would cost one call more

_WAKING = (RUNNING, LATE, FAILED)  # the phases in which tasks can be woken

_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class Engine(RingSide):
    """Performs operations on a ring for the tasks of one trio.run.

    Args:
        ring: belongs to the engine from now on.
        move: finds the engine that performs an operation when this one's run is over.

    Attributes:
        pumps: the ring has every opcode that chains of operations use.
        by_calls: the opcodes that are done by system calls for a task.
    """

    # pyright --verifytypes wants what is inherited and assigned here to be declared here.
    dirty: bool
    busy: bool
    completes = True  # operations are done by the kernel's completions, not by our calls

    def __init__(self, ring: Ring, move: Callable[[TaskOperation], Any]) -> None:
        super().__init__(ring)
        self.provided_buffers: bool = ring.info.provided_buffers
        self.pumps: bool = not ring.info.lacking
        # None with a fake ring: a call would not reach what is connected in its memory.
        by_calls = {*BY_READINESS, *(int(Opcode[name]) for name in ring.info.lacking)}
        fake = ring.info.backend == "fake"
        self.by_calls: frozenset[int] = frozenset() if fake else frozenset(by_calls)
        self._move = move

    # -- for tasks

    @enable_ki_protection
    def perform(self, op: TaskOperation) -> Awaitable[int]:
        """Performs the operation for the current task, which must at once await what this returns.

        The result is >= 0, or -errno. Always a checkpoint. The operation's buffers are held until
        the kernel is done with them. A call that ends while `op.owed` is true was destroyed
        (coro.close()): see `abandon`.

        Cancellation: the kernel is asked to stop; what it had done by then is returned, and the
        cancellation is left for the next checkpoint. Cancelled is raised only if nothing was done.
        """
        if self.phase is not RUNNING or get_ident() != self.thread:
            engine = self.attend(op)
            if engine is not self:
                performed: Awaitable[int] = engine.perform(op)
                return performed
        if op.opcode in self.by_calls:
            return perform_by_readiness(op, self._wait_for)
        if self.hooks is not None and not self.queue:
            self.hooks.queued()
        op.task = current_task()
        self.queue[op] = None
        op.owed = True
        if _AWAITS_ITSELF:
            return op
        return wait_task_rescheduled(op.abort)  # noqa: ASYNC105  (the caller awaits it)

    async def _wait_for(self, op: TaskOperation) -> int:
        """Waits until an operation that is done by a call can be tried. Below 0: it has failed."""
        way = None if op.way is None else op.way()
        assert way is not None  # whoever performs the operation has the direction
        return int(await way.wait_ready())

    async def wait_ready(self, poll: TaskOperation) -> int:
        """Performs a POLL_ADD. It may return too early."""
        if self.phase is not RUNNING or get_ident() != self.thread:
            engine = self.attend(poll)
            if engine is not self:
                return int(await engine.wait_ready(poll))
        events = poll.flags
        res = await self.perform(poll)
        if res < 0 or res & (events | POLL_ALWAYS):
            return res
        # io_uring's polls end once the peer has half-closed (POLLRDHUP), whatever they were asked
        # to wait for. epoll's do not.
        poll.by_trio = True
        try:
            return await wait_by_trio(poll.fd, events)
        finally:
            poll.by_trio = False

    def abandon(self, op: TaskOperation) -> None:
        """Withdraws or cancels the operation of a task whose coroutine was destroyed.

        Until it is done, the ring holds what it needs, and nobody else may use it.
        """
        op.task = None
        if get_ident() == self.thread and not op.state.in_kernel and not self.busy:
            self._drop(op)
            if self.hooks is not None:
                self.come_back()  # the next pass looks whether anything is left
        else:
            # A garbage collection may have destroyed the coroutine when we are about to wait.
            self.at_flush(functools.partial(self._drop, op))

    def _drop(self, op: TaskOperation) -> None:
        if op.state.in_kernel:
            self.ask_to_stop(op)
        else:
            if op in self.queue:
                self._take_back(op)
                op.res = 0
            op.finish()  # only once: it may be done already, or drained and not yet finished

    def _take_back(self, op: TaskOperation) -> None:
        self.queue.pop(op, None)
        op.let_go()

    @enable_ki_protection
    async def settle(self, op: TaskOperation) -> None:
        """Waits until an abandoned operation is done.

        Cancellation: it stops waiting.
        """

        task = current_task()

        def leave(_: Callable[[], NoReturn]) -> Abort:
            # It resumes only in the next pass: until then the operation may be done, or another
            # task may wait for it.
            op.task = None
            return Abort.SUCCEEDED

        while op.state.in_kernel:
            if self.phase is not RUNNING or get_ident() != self.thread:
                self.attend(op)
            op.task = task
            try:
                await wait_task_rescheduled(leave)
            finally:
                if op.task is task:
                    op.task = None
        self._drop(op)  # if another thread has abandoned it, it may still be in the queue

    @enable_ki_protection
    def withdraw(self, op: TaskOperation) -> bool:
        """Takes an operation out of the queue. False: it is not there any more.

        It is in the kernel; or it is done, and about to be finished. Its result must not be lost
        then, even if what cancels it is called in the midst of that (an instrument, a destructor).
        """
        if op.state.in_kernel or op not in self.queue:
            return False
        self._take_back(op)
        self.look_idle()
        return True

    @enable_ki_protection
    def cancel(self, op: TaskOperation) -> None:
        if not self.dirty and self.hooks is not None:
            self.hooks.queued()
            self.come_back()  # in a guest run, the host may call us between two passes
        self.ask_to_stop(op)

    # -- chains

    @enable_ki_protection
    def chain(self, op: TaskOperation, then: Callable[[], object]) -> None:
        """Queues an operation whose completion calls a function, in the reap.

        The function is called once: after the completion (`op.unwrap()` is the result); if the
        descriptor was closed first (the result is -ECANCELED); or if the ring refuses the
        operation, the driver fails or the run ends (`op.unwrap()` raises or is -ECANCELED, and
        `op.state` tells whether the kernel may still have the buffers). It must not raise. It may
        chain further operations, `unchain` others, and `resume` a task.

        Raises:
            trio.BrokenResourceError: the driver has failed. The function is not called.
            RuntimeError: the run is over. The function is not called.
        """
        if self.phase is not RUNNING or get_ident() != self.thread:
            self.attend(op)
        if self.hooks is not None and not self.queue:
            self.hooks.queued()
        op.engine, op.raise_cancel, op.then = self, None, then
        self.queue[op] = None

    @enable_ki_protection
    def unchain(self, op: TaskOperation) -> None:
        """Stops a chained operation.

        If it is still in the queue, it is withdrawn and its function is not called. Otherwise it is
        cancelled, and its function is called as always.
        """
        if op.then is None or self.phase is FAILED:  # a failure calls every function itself
            return
        if op.state.in_kernel:
            self.cancel(op)
        elif op in self.queue:  # otherwise it is done, and about to be finished in this reap
            self._take_back(op)
            op.then = None
            if self.hooks is not None:
                self.come_back()  # as in `abandon`

    def resume(self, task: trio.lowlevel.Task, outcome: Any) -> None:
        """Wakes a task on behalf of chained operations."""
        self.woke = True
        _reschedule(task, outcome)

    # -- closing a descriptor

    @enable_ki_protection
    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        """Closes a descriptor that operations may be using.

        close(2) alone cancels nothing and holds back the FIN, and an entry that was not submitted
        yet would find another file under the same number. So queued operations are withdrawn, those
        in the kernel are cancelled, that is flushed, and the descriptor is closed. Tasks that wait
        get ECANCELED in the next pass: here, a garbage collection may have interrupted trio, which
        is about to wake them itself.
        """
        if not self.phase.works or get_ident() != self.thread:
            close()
            return
        if self.busy:
            # The operations may be the ones that are being written or finished.
            self.at_flush(functools.partial(self._release_late, list(ops), close))
            return
        for op in ops:
            if op.engine is self:
                self._end(op)
        if not self.dirty or self._tell_kernel():
            close()
        else:
            # The kernel is short of resources, and an entry with this number may still wait.
            self.closing.append(close)

    def _release_late(self, ops: list[TaskOperation], close: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            self.release(ops, close)

    def _end(self, op: TaskOperation) -> None:
        """Ends an operation whose descriptor is about to be closed."""
        if op.state.in_kernel:
            self.ask_to_stop(op)
        elif op.task is not None or op.then is not None:
            self._take_back(op)
            op.res = _ECANCELED
            self.at_flush(functools.partial(self._finish_ended, op))
        # A call that has been interrupted may be about to queue it: its entry must not name the
        # number, which may be another file's by then.
        op.fd, op.entry = CLOSED_FD, None

    def _finish_ended(self, op: TaskOperation) -> None:
        if self.phase not in _WAKING:
            op.task = None  # it cannot be woken any more
        self.finish(op)

    def _tell_kernel(self) -> bool:
        """Flushes what the ring holds. False: not all of it."""
        self.busy, flushed = True, False
        try:
            flushed = self.ring.flush()
        except BaseException as exc:
            self.at_flush(functools.partial(self._fail_late, exc))  # that wakes tasks, too
        finally:
            self.busy = False
        self.dirty = not flushed or bool(self.closing)
        if self.dirty and self.hooks is not None:
            self.come_back()
        return flushed

    def _fail_late(self, exc: BaseException) -> None:
        if self.phase.works:
            self.fail(exc)

    # -- when this engine cannot perform an operation

    def attend(self, op: TaskOperation) -> Any:
        """Finds the engine that performs an operation; raises, with the reason, if none does."""
        phase = self.phase
        try:
            if not phase.over and get_ident() != self.thread:
                raise RuntimeError(
                    "this stream belongs to a trio.run in another thread; use it there"
                )
            if phase is FAILED:
                raise self.failed() from self.failure
            if phase.refusal is not None:
                raise RuntimeError(phase.refusal)
            return self._move(op) if phase is OVER else self
        except BaseException:
            if not op.state.in_kernel:
                op.let_go()
            raise
