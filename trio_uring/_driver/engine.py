"""The engine: queues operations, parks tasks on them, enters the kernel and wakes the tasks again.
`_driver` runs it.

Rules of this file:

- A task leaves an operation that the ring has seen only on that operation's own completion, as in
  trio's IOCP driver (`trio/_core/_io_windows.py`, wait_overlapped). A cancel is a request: abort
  asks the ring and returns Abort.FAILED; the completion is the truth. A result that arrived wins;
  only ECANCELED after a cancel raises Cancelled. Abort.SUCCEEDED is for an operation that is still
  in the queue.
- No exception leaves `flush` and `reap`: tasks parked with Abort.FAILED are woken by nobody else. A
  failure wakes everyone with an error, and every later operation fails with it.
- What touches the queue or the ring is protected from KeyboardInterrupt.
- An operation that is not in the kernel holds no buffer: the caller may resize it as soon as the
  call is over.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
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

from .._errors import RingBrokenError
from .._ring.op import Operation, poll_event
from .._ring.opcodes import BY_READINESS, Opcode
from .readiness import ALWAYS, perform_by_readiness, wait_by_trio

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from .._ring.protocol import Ring
    from .task_way import TaskWay

_log = logging.getLogger("trio_uring")

_ECANCELED = -errno.ECANCELED


class TaskOperation(Operation):
    """An operation that a task waits for. It is its own outcome: trio calls `unwrap` when the task
    resumes."""

    __slots__ = ("by_trio", "driver", "lease", "poll", "raise_cancel", "task")
    waiting = False  # of a chained operation (_chains): its function has not been called yet

    def __init__(self, driver: Any, opcode: int, fd: int, owner: object = None) -> None:
        super().__init__(opcode, fd, owner)
        self.driver = driver
        self.task: trio.lowlevel.Task | None = None
        self.raise_cancel: Callable[[], NoReturn] | None = None
        # Of its descriptor. Weak, since the lease has it: a stream that is forgotten is freed at
        # once.
        self.lease: weakref.ref[Any] | None = None
        self.by_trio = False  # a poll whose task waits by trio's own means instead
        self.poll: TaskOperation | None = (
            None  # which waits for the descriptor, where this one is done by calls
        )

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


# trio asks of an outcome that it has unwrap(), nothing else; an Outcome object for each wake-up
# would be one more allocation.
_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class Engine:
    """Performs operations on a ring for the tasks of one trio.run."""

    completes = True  # operations are done by the kernel's completions, not by calls of ours

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.counters = ring.counters
        self.provided_buffers = ring.info.provided_buffers
        ring.now = time.monotonic()
        self.short_writes = self.passes = 0
        self.closed = False
        self.disowned = False  # it is the parent's, in a forked child
        self.failure: BaseException | None = None
        self.queue: dict[TaskOperation, None] = {}  # in the order in which they were made
        self.dirty = False  # the ring holds entries that were not flushed
        self.woke = False  # a task, in this pass
        # The opcodes that are not the ring's for a task. (A call would not reach what is connected
        # in a fake's memory.)
        by_calls = {*BY_READINESS, *(int(Opcode[name]) for name in ring.info.lacking)}
        self._by_calls = frozenset() if ring.info.backend == "fake" else frozenset(by_calls)
        self.pumps = not ring.info.lacking  # it can do all that a chain of operations is made of
        # What `begin` has to do first, in states other than running.
        self.attention: Callable[[TaskOperation], None] | None = None
        self.task_way: TaskWay | None = (
            None  # None: the ring is trio's loop, and needs no help to be entered
        )
        self.done: list[
            Any
        ] = []  # drained and not yet woken; here, so that a failure in between loses none
        self.has_errands = False
        self._abandoned: list[tuple[TaskOperation, int]] = []
        self._at_flush: list[Callable[[], object]] = []
        self._closing: list[
            Callable[[], object]
        ] = []  # descriptors to close after the next whole flush
        self.thread = get_ident()
        self._token = trio.lowlevel.current_trio_token()

    # -- for streams

    @enable_ki_protection
    def begin(self, op: TaskOperation) -> bool:
        """Queues the operation for the current task, which must then park at once: ``await
        wait_task_rescheduled(op.abort)``.

        For the paths where one coroutine more is felt; the others call `perform`. False: nothing
        was done, since it is not the ring's, or the driver of this run has none: call
        `op.driver.perform_by_call`. Whoever parks by hand calls `abandon` if op.task is not None
        afterwards: the coroutine was destroyed.
        """
        if self.attention is not None or get_ident() != self.thread:
            self._attend(op)
            if op.driver is not self:
                return bool(op.driver.begin(op))
        if op.opcode in self._by_calls:
            return False
        if not self.queue and self.task_way is not None:
            self.task_way.rehook()
        self.queue[op] = None
        op.task = current_task()
        return True

    @enable_ki_protection
    async def perform(self, op: TaskOperation) -> int:
        """Performs the operation and returns its result: >= 0, or -errno.

        A checkpoint, always. The operation's buffers are held until the kernel is done with them.

        Cancellation: the kernel is asked to stop; what it had done by then is returned and the
        cancellation is left for the next checkpoint. Cancelled is raised only if nothing was done.
        """
        if not self.begin(op):
            return int(await op.driver.perform_by_call(op))
        try:
            return await wait_task_rescheduled(op.abort)  # type: ignore[no-any-return]
        finally:
            if op.task is not None:
                op.driver.abandon(op)

    @enable_ki_protection
    async def perform_by_call(self, op: TaskOperation) -> int:
        """As perform, for an operation that `begin` has left to us: by its own system call."""
        return await perform_by_readiness(op, self._wait_for)

    async def _wait_for(self, op: TaskOperation) -> int:
        """Waits until the operation's descriptor may be ready. Below 0: it cannot be waited for."""
        poll = op.poll
        if poll is None:
            lease = None if op.lease is None else op.lease()
            assert lease is not None  # whoever performs the operation has it
            poll = op.poll = lease.operation(Opcode.POLL_ADD, op.fd)
            poll.flags = poll_event(op)
        return int(
            await poll.driver.wait_ready(poll)
        )  # which may be an earlier run's, and then moves

    async def wait_ready(self, poll: TaskOperation) -> int:
        """Performs a POLL_ADD. The result may be told too early."""
        events = poll.flags
        res = await self.perform(poll)
        if res < 0 or res & (events | ALWAYS):
            return res
        # io_uring's polls are over when the peer has half-closed (POLLRDHUP), whatever was asked
        # for. epoll's are not.
        poll.by_trio = True
        try:
            return await wait_by_trio(poll.fd, events)
        finally:
            poll.by_trio = False

    def abandon(self, op: TaskOperation) -> None:
        """The task's coroutine was destroyed (coro.close()): the ring holds what the operation
        needs until it is done."""
        op.task = op.raise_cancel = None
        if get_ident() != self.thread or not self.withdraw(op):
            self._abandoned.append(
                (op, op.token)
            )  # this use of it: the next one is somebody else's
            self.has_errands = True
            # it may be a garbage collection that destroys it, when we are about to wait
            self.come_back()

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
        self.queue.pop(op, None)
        self._look_idle()
        op.let_go()
        return True

    def _look_idle(self) -> None:
        if self.task_way is not None and not self.ring.table and not self.queue:
            self.task_way.idle()

    @enable_ki_protection
    def cancel(self, op: TaskOperation) -> None:
        self.ring.cancel(op)
        if not self.dirty and self.task_way is not None:
            self.task_way.rehook()
            self.come_back()  # in a guest run, the host may call us between two passes
        self.dirty = True

    @enable_ki_protection
    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        """Closes a descriptor that operations may be using.

        close(2) alone cancels nothing and holds back the FIN, and an entry that was not submitted
        would find a stranger under the same number. So: what is queued is taken back, what is in
        the kernel is flushed and cancelled, the descriptor is closed, and one more reap collects
        what the cancels did. Tasks that wait get ECANCELED.
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
        if not self.dirty:
            close()
            return
        self._guard(self._flush_ring)
        if self.dirty and self.failure is None:
            self._closing.append(
                close
            )  # the kernel is short of something; an entry with this number still waits
            return
        close()
        self._guard(self.reap_ring)

    # -- the two halves of a pass

    def flush(self) -> None:
        """The end of a pass: everything queued goes to the kernel."""
        self.passes += 1
        self.woke = False
        if self.has_errands:
            self.run_errands()
        if self.queue or self.dirty:
            self._guard(self._flush_ring)

    def reap(self) -> None:
        """The beginning of a pass: every completion wakes its task."""
        self._guard(self.reap_ring)

    def run_errands(self) -> None:
        """What destroyed coroutines have left to be done in a pass."""
        self.has_errands = False
        self._cancel_abandoned()
        self._guard(self._call_at_flush)

    def at_flush(self, function: Callable[[], object]) -> None:
        """Has a function called when this pass is flushed. For destroyed coroutines: from any
        thread, at any point."""
        self._at_flush.append(function)
        self.has_errands = True
        self.come_back()

    def _call_at_flush(self) -> None:
        while self._at_flush:
            self._at_flush.pop()()

    def _flush_ring(self) -> None:
        self.write_queue()
        self.ring.flush()
        self.wrote()
        if self.dirty and self.task_way is not None:
            # the kernel was short of something: the wait that follows must end at once
            self.come_back()

    def write_queue(self) -> None:
        """What is queued becomes entries, as far as the ring takes it."""
        ring, queue = self.ring, self.queue
        for op in list(
            queue
        ):  # a garbage collection in between may destroy a coroutine, and withdraw its operation
            if op not in queue:
                continue
            try:
                taken = ring.submit(op) or (ring.flush() and ring.submit(op))
            except RingBrokenError:
                raise
            except Exception as exc:  # this operation's own fault, and nobody else's
                self._refuse(op, exc)
                taken = True
            if not taken:
                return
            queue.pop(op, None)

    def wrote(self) -> None:
        """After the kernel was entered with what `write_queue` has written."""
        # One enter may take a part; then an entry may still name a descriptor that is to be closed.
        self.dirty = (
            self.ring.short or bool(self.queue) or (bool(self._closing) and self.ring.ready())
        )
        if self._closing and not self.dirty:
            self.close_deferred()

    def close_deferred(self) -> None:
        while self._closing:
            with contextlib.suppress(OSError):
                self._closing.pop()()

    def come_back(self) -> None:
        """Makes trio's next wait end at once. From any thread."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(_nothing, idempotent=True)

    def reap_ring(self) -> None:
        if self.ring.drain(self.done):
            self.dirty = True
            self.come_back()
        self.wake_done()

    def wake_done(self) -> None:
        """Wakes the tasks of what was drained."""
        self.ring.now = time.monotonic()
        done = self.done
        for op in done:
            task = op.task
            if task is None:
                if (
                    op.dispose is not None
                ):  # a completion that no task waits for: a chained one, or an abandoned one
                    op.dispose(op.res)
            else:
                op.task = None
                self.woke = True
                _reschedule(task, op)
        done.clear()
        if self.task_way is not None:
            self._look_idle()

    def _wake(self, op: TaskOperation) -> None:
        task, op.task = op.task, None
        if task is not None:
            self.woke = True
            _reschedule(task, op)

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
        if self.task_way is not None:
            self.come_back()  # in before_io_wait, trio has made up its mind how long to wait

    def fail(self, exc: BaseException) -> None:
        """The ring is gone. Everyone who waits is told; what the kernel may still write to stays
        pinned by the ring."""
        self.failure = exc
        self.attention = self._refuse_failed
        _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)
        for op in self.done:  # these were done before it happened
            self._wake(op)
        self.done.clear()
        stranded: list[Any] = [*self.ring.table.values(), *self.queue]
        for op in self.queue:
            if not op.state.in_kernel:  # an earlier flush of this pass may have handed it over
                op.let_go()
        self.queue.clear()
        for op in stranded:
            error = trio.BrokenResourceError(f"trio_uring's driver has failed: {exc}")
            error.__cause__ = exc
            self._refuse(op, error)
        self.dirty = False
        self.close_deferred()
        if self.task_way is not None:
            self.task_way.idle()

    def _attend(self, op: TaskOperation) -> None:
        """Does what has to be done before an operation when all is not as usual, or says why it
        cannot be made."""
        try:
            if not self.closed and get_ident() != self.thread:
                raise RuntimeError(
                    "this stream belongs to a trio.run in another thread; use it there"
                )
            if self.attention is not None:
                self.attention(op)
        except BaseException:
            if not op.state.in_kernel:
                op.let_go()
            raise

    def _refuse_failed(self, _: TaskOperation) -> None:
        raise trio.BrokenResourceError(
            f"trio_uring's driver has failed: {self.failure}"
        ) from self.failure


def _nothing() -> None:
    pass
