"""The engine: queues operations, parks tasks on them, enters the kernel and wakes the tasks again. `_driver` runs it.

When few operations are made in a pass, a whole pass for each costs more than a system call, so an eager operation is tried by
its own system call first, and is often done without parking (the same that trio's sockets do).

Rules of this file:

- A task leaves an operation that the ring has seen only on that operation's own completion, as in trio's IOCP driver
  (`trio/_core/_io_windows.py`, wait_overlapped). A cancel is a request: abort asks the ring and returns Abort.FAILED; the
  completion is the truth. A result that arrived wins; only ECANCELED after a cancel raises Cancelled. Abort.SUCCEEDED is for
  an operation that is still in the queue.
- No exception leaves `flush` and `reap`: tasks parked with Abort.FAILED are woken by nobody else. A failure wakes everyone with
  an error, and every later operation fails with it.
- What touches the queue or the ring is protected from KeyboardInterrupt.
- An operation that is not in the kernel holds no buffer: the caller may resize it as soon as the call is over.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

from ._errors import RingBrokenError
from ._op import RECEIVING, Operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from ._contract import Ring

_log = logging.getLogger("trio_uring")

UNLUCKY = 8  # receives that wait at once, after one that was tried and found nothing
QUIET_MAX = 3  # operations in the last pass, and in this one, up to which an eager one is tried at once

_ECANCELED = -errno.ECANCELED


class TaskOperation(Operation):
    """An operation that a task waits for. It is its own outcome: trio calls `unwrap` when the task resumes."""

    __slots__ = ("driver", "raise_cancel", "siblings", "task", "unlucky")
    waiting = False  # of a chained operation (_chains): its function has not been called yet

    def __init__(self, driver: Engine, opcode: int, fd: int, owner: object = None) -> None:
        super().__init__(opcode, fd, owner)
        self.driver = driver
        self.task: trio.lowlevel.Task | None = None
        self.raise_cancel: Callable[[], NoReturn] | None = None
        self.siblings: list[TaskOperation] = []  # the operations of the same stream, with this one
        self.unlucky = 0  # times that it is not to be tried at once

    @enable_ki_protection
    def abort(self, raise_cancel: Callable[[], NoReturn]) -> Abort:
        if self.driver.closed or self.driver.withdraw(self):
            self.task = None
            return Abort.SUCCEEDED
        self.raise_cancel = raise_cancel
        self.driver.cancel(self)
        return Abort.FAILED

    def unwrap(self) -> int:
        raise_cancel = self.raise_cancel
        if raise_cancel is not None:
            self.raise_cancel = None
            if self.res == _ECANCELED:
                raise_cancel()
        return self.res

    def let_go(self) -> None:
        """Drops the buffers of an operation that the ring does not hold."""
        self.buffer = self.buffers = self.pin = None


# trio asks of an outcome that it has unwrap(), nothing else; an Outcome object for each wake-up would be one more allocation.
_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class Engine:
    """Performs operations on a ring for the tasks of one trio.run."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        ring.now = time.monotonic()
        self.short_writes = self.passes = 0
        self.closed = False
        self.failure: BaseException | None = None
        self.queue: list[TaskOperation] = []
        self.dirty = False  # the ring holds entries that were not flushed
        self.idle_scope: trio.CancelScope | None = None  # cancelled as soon as nothing is queued or in flight
        # What `begin` has to do first, in states other than running.
        self.attention: Callable[[TaskOperation], None] | None = None
        self._done: list[Any] = []  # drained and not yet woken; here, so that a failure in between loses none
        self._abandoned: list[tuple[TaskOperation, int]] = []
        self._woke = False  # a task, in this reap
        self._closing: list[Callable[[], object]] = []  # descriptors to close after the next whole flush
        self._eager: TaskOperation | None = None  # the one that is being performed now: its caller is there for the result
        self._load = self._made = 0  # operations made in the last pass, and in this one
        self.thread = get_ident()
        self._token = trio.lowlevel.current_trio_token()

    def rehook(self) -> None:
        """Sees to it that this pass ends with a flush."""
        raise AssertionError("the driver does this")

    # -- for streams

    @enable_ki_protection
    def begin(self, op: TaskOperation, eager: bool = False) -> bool:
        """Queues the operation for the current task, which must then park at once: ``await wait_task_rescheduled(op.abort)``.

        For the paths where one coroutine more is felt; the others call `perform`. False: nothing was done, because the
        operation is an eager one and this is the time for it; call `perform_eagerly`. Whoever parks by hand calls `abandon`
        if op.task is not None afterwards: the coroutine was destroyed.
        """
        if self.attention is not None or get_ident() != self.thread:
            self._attend(op)
            if op.driver is not self:
                return op.driver.begin(op, eager)
        queue = self.queue
        self._made += 1
        if not queue:
            if eager and self._load <= QUIET_MAX and self._made <= QUIET_MAX:
                if not op.unlucky:
                    return False
                op.unlucky -= 1
            self.rehook()
        queue.append(op)
        op.task = current_task()
        return True

    @enable_ki_protection
    async def perform(self, op: TaskOperation, eager: bool = False) -> int:
        """Performs the operation and returns its result: >= 0, or -errno.

        A checkpoint, always. The operation's buffers are held until the kernel is done with them.

        Cancellation: the kernel is asked to stop; what it had done by then is returned and the cancellation is left for the
        next checkpoint. Cancelled is raised only if nothing was done.
        """
        if not self.begin(op, eager):
            return await op.driver.perform_eagerly(op)
        try:
            return await wait_task_rescheduled(op.abort)  # type: ignore[no-any-return]
        finally:
            if op.task is not None:
                op.driver.abandon(op)

    @enable_ki_protection
    async def perform_eagerly(self, op: TaskOperation) -> int:
        """Performs an operation that `begin` left to us: at once, and without parking if it need not wait."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            op.let_go()
            raise
        if self._perform_now(op):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return op.res
        op.task = current_task()
        try:
            return await wait_task_rescheduled(op.abort)  # type: ignore[no-any-return]
        finally:
            if op.task is not None:
                self.abandon(op)

    def _perform_now(self, op: TaskOperation) -> bool:
        """Tries what the operation stands for. False: it is not done yet, and in the queue or in the ring."""
        try:
            if self.ring.attempt(op):
                return True
            taken = op.shots is not None and self.ring.submit(op)
        except BaseException:
            op.let_go()
            raise
        if not taken:
            if op.opcode in RECEIVING:
                op.unlucky = UNLUCKY  # a peer that answers has not answered yet the next times, either
            self.rehook()
            self.queue.append(op)
            return False
        # A multishot: what is there already comes with one enter.
        self._eager = op
        self._guard(self._flush_ring)
        self._guard(self._reap_ring)
        self._eager = None
        if self.failure is not None:
            self._attend(op)
        return not op.state.in_kernel

    def abandon(self, op: TaskOperation) -> None:
        """The task's coroutine was destroyed (coro.close()): the ring holds what the operation needs until it is done."""
        op.task = op.raise_cancel = None
        if get_ident() != self.thread or not self.withdraw(op):
            self._abandoned.append((op, op.token))  # this use of it: the next one is somebody else's

    @enable_ki_protection
    async def settle(self, op: TaskOperation) -> None:
        """Waits until an abandoned operation is done. Cancellation: it stops waiting."""

        def leave(_: Callable[[], NoReturn]) -> Abort:
            return Abort.SUCCEEDED

        while op.state.in_kernel:
            if self.attention is not None or get_ident() != self.thread:
                self._attend(op)
            op.task = current_task()
            try:
                await wait_task_rescheduled(leave)
            finally:
                op.task = None

    @enable_ki_protection
    def withdraw(self, op: TaskOperation) -> bool:
        """Takes back an operation that the ring has not seen."""
        if op.state.in_kernel:
            return False
        if op in self.queue:
            self.queue.remove(op)
            self._look_idle()
        op.let_go()
        return True

    def _look_idle(self) -> None:
        if self.idle_scope is not None and not self.ring.table and not self.queue:
            self.idle_scope.cancel()

    @enable_ki_protection
    def cancel(self, op: TaskOperation) -> None:
        self.ring.cancel(op)
        self.dirty = True
        self.rehook()

    @enable_ki_protection
    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        """Closes a descriptor that operations may be using.

        close(2) alone cancels nothing and holds back the FIN, and an entry that was not submitted would find a stranger
        under the same number. So: what is queued is taken back, what is in the kernel is flushed and cancelled, the
        descriptor is closed, and one more reap collects what the cancels did. Tasks that wait get ECANCELED.
        """
        if self.closed or self.failure is not None or get_ident() != self.thread:
            close()
            return
        for op in ops:
            if op.driver is not self:
                continue
            if op.state.in_kernel:
                self.ring.cancel(op)
                self.dirty = True
            elif op.task is not None or op.waiting:
                self.withdraw(op)
                op.res = _ECANCELED
                self._wake(op)
        if self.dirty:
            self._guard(self._flush_ring)
        if self.dirty and self.failure is None:
            self._closing.append(close)  # the kernel is short of something; an entry with this number still waits
            return
        close()
        self._guard(self._reap_ring)

    # -- the two halves of a pass

    def flush(self) -> None:
        """The end of a pass: everything queued goes to the kernel."""
        self.passes += 1
        self._load, self._made = self._made, 0
        if self._abandoned:
            self._cancel_abandoned()
        if self.queue or self.dirty:
            self._guard(self._flush_ring)

    def reap(self) -> None:
        """The beginning of a pass: every completion wakes its task."""
        self._guard(self._reap_ring)

    def _flush_ring(self) -> None:
        ring, queue = self.ring, self.queue
        for index, op in enumerate(queue):
            try:
                taken = ring.submit(op) or (ring.flush() and ring.submit(op))
            except RingBrokenError:
                raise
            except Exception as exc:  # this operation's own fault, and nobody else's
                self._refuse(op, exc)
                continue
            if not taken:
                del queue[:index]
                break
        else:
            queue.clear()
        self.dirty = not ring.flush() or bool(queue)
        if self.dirty:
            self.come_back()  # the kernel was short of something: the wait that follows must end at once
        else:
            self._close_deferred()

    def come_back(self) -> None:
        """Makes trio's next wait end at once."""
        self._token.run_sync_soon(_nothing, idempotent=True)

    def _close_deferred(self) -> None:
        while self._closing:
            with contextlib.suppress(OSError):
                self._closing.pop()()

    def _reap_ring(self) -> None:
        self.ring.now = time.monotonic()
        done = self._done
        self.ring.drain(done)
        for op in done:
            task = op.task
            if task is None:
                self._drop(op)
            else:
                op.task = None
                self._woke = True
                _reschedule(task, op)
        done.clear()
        self._look_idle()

    def _wake(self, op: TaskOperation) -> None:
        task, op.task = op.task, None
        if task is not None:
            _reschedule(task, op)

    def _drop(self, op: TaskOperation) -> None:
        """A completion that no task waits for: a chained one, an eager one that is told by its state, an abandoned one."""
        if op.dispose is not None and op is not self._eager:
            op.dispose(op.res)

    def _cancel_abandoned(self) -> None:
        while self._abandoned:
            op, token = self._abandoned.pop()
            if op.state.in_kernel:
                if op.token == token:
                    self.ring.cancel(op)
                    self.dirty = True
            elif op.task is None:
                self.withdraw(op)

    # -- when things go wrong

    def _guard(self, step: Callable[[], None]) -> None:
        if self.failure is None and not self.closed:
            try:
                step()
            except BaseException as exc:
                self.fail(exc)

    def _refuse(self, op: TaskOperation, exc: BaseException) -> None:
        def raise_it() -> NoReturn:
            raise exc

        if not op.state.in_kernel:
            op.let_go()
        if op.task is not None or op.waiting:
            op.res, op.raise_cancel = _ECANCELED, raise_it
            self._wake(op)
        self.come_back()  # in before_io_wait, trio has made up its mind how long to wait

    def fail(self, exc: BaseException) -> None:
        """The ring is gone. Everyone who waits is told; what the kernel may still write to stays pinned by the ring."""
        self.failure = exc
        self.attention = self._refuse_failed
        _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)
        for op in self._done:  # these were done before it happened
            self._wake(op)
        self._done.clear()
        stranded: list[Any] = [*self.ring.table.values(), *self.queue]
        for op in self.queue:
            if not op.state.in_kernel:  # an earlier flush of this pass may have handed it over
                op.let_go()
        self.queue.clear()
        for op in stranded:
            error = trio.BrokenResourceError(f"trio_uring's driver has failed: {exc}")
            error.__cause__ = exc
            self._refuse(op, error)
        self._close_deferred()
        if self.idle_scope is not None:
            self.idle_scope.cancel()

    def _attend(self, op: TaskOperation) -> None:
        """Does what has to be done before an operation when all is not as usual, or says why it cannot be made."""
        try:
            if not self.closed and get_ident() != self.thread:
                raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
            if self.attention is not None:
                self.attention(op)
        except BaseException:
            if not op.state.in_kernel:
                op.let_go()
            raise

    def _refuse_failed(self, _: TaskOperation) -> None:
        raise trio.BrokenResourceError(f"trio_uring's driver has failed: {self.failure}") from self.failure


def _nothing() -> None:
    pass
