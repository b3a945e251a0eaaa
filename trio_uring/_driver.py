"""The driver: one ring per trio.run, and the only module that parks and wakes tasks.

A pass of trio's scheduler:

    tasks run            they queue operations and park: `perform`
    before_io_wait       flush: the queue goes to the ring, ONE io_uring_enter for all of it
    epoll_wait           trio's own; the ring's descriptor is in it, armed by the system task
    after_io_wait        reap: completions are drained and their tasks rescheduled; they run in this same pass

When few operations are made in a pass, a whole pass for each costs more than a system call, so an eager operation enters the
kernel at once and is often done without parking (the same that trio's sockets do with send(2)).

Rules of this file:

- A task leaves an operation that the ring has seen only on that operation's own completion, as in trio's IOCP driver
  (`trio/_core/_io_windows.py`, wait_overlapped). A cancel is a request: abort asks the ring and returns Abort.FAILED; the
  completion is the truth. A result that arrived wins; only ECANCELED after a cancel raises Cancelled. Abort.SUCCEEDED is for
  an operation that is still in the queue.
- No exception leaves `_flush`, `_reap` or the system task: tasks parked with Abort.FAILED are woken by nobody else. A
  failure wakes everyone with an error and marks the driver broken.
- What touches the queue or the ring is protected from KeyboardInterrupt.
- The system task is enough to reap; the hooks save a pass, and put themselves back when somebody removes them.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

from ._errors import RingBrokenError
from ._op import Operation
from ._ring import Ring, Timer, UringRing
from ._statistics import OperationInFlight, Statistics, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

_log = logging.getLogger("trio_uring")

QUIET_MAX = 3  # operations in the last pass, up to which an eager one goes to the kernel at once
TEARDOWN_SECONDS = 1.0  # how long the end of a run waits for the kernel to give back what is in flight
WATCHDOG_SECONDS = 1.0
_LATE_WAIT = 0.05  # seconds that one pass may block when the system task is gone; see _flush_late

_ECANCELED = -errno.ECANCELED


class TaskOperation(Operation):
    """An operation that a task waits for. It is its own outcome: trio calls `unwrap` when the task resumes."""

    __slots__ = ("driver", "raise_cancel", "task")

    def __init__(self, driver: Driver, opcode: int, fd: int, owner: object = None) -> None:
        super().__init__(opcode, fd, owner)
        self.driver = driver
        self.task: trio.lowlevel.Task | None = None
        self.raise_cancel: Callable[[], NoReturn] | None = None

    @enable_ki_protection
    def abort(self, raise_cancel: Callable[[], NoReturn]) -> Abort:
        if self.driver.withdraw(self):
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


# trio asks of an outcome that it has unwrap(), nothing else; an Outcome object for each wake-up would be one more allocation.
_reschedule: Callable[[trio.lowlevel.Task, Any], None] = reschedule


class Driver:
    """Performs operations for the tasks of one trio.run. Made on first use by `current_driver`."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.rescued = 0  # see _watch
        self.watchdog_seconds = WATCHDOG_SECONDS
        self.short_writes = 0
        self.passes = 0
        self._queue: list[TaskOperation] = []
        self._abandoned: list[TaskOperation] = []
        self._closing: list[Callable[[], object]] = []  # descriptors to close after the next whole flush
        self._dirty = False  # the ring holds entries (cancels) that were not flushed
        self._load = 0  # operations made in the last pass
        self._made = 0  # operations made in this pass
        self._thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        self._hooks = _Hooks(self)
        self._hooked = False  # the hooks reaped in this pass
        self._idle_scope: trio.CancelScope | None = None
        self._late = False
        self._attention: Callable[[], None] | None = None  # what `perform` has to do first, in states other than running
        self._failure: BaseException | None = None
        self.closed = False

    # -- for streams

    @enable_ki_protection
    async def perform(self, op: TaskOperation, eager: bool = False) -> int:
        """Performs the operation and returns its result: >= 0, or -errno.

        A checkpoint, always. The operation's buffers are held until the kernel is done with them.

        Cancellation: the kernel is asked to stop; what it had done by then is returned and the cancellation is left for the
        next checkpoint. Cancelled is raised only if nothing was done.
        """
        if self._attention is not None or threading.get_ident() != self._thread:
            self._attend()
        self._made += 1
        if eager and self._load <= QUIET_MAX and not self._queue:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._perform_now(op):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return op.res
        else:
            if not self._queue:
                self._rehook()
            self._queue.append(op)
        op.task = current_task()
        try:
            return await wait_task_rescheduled(op.abort)  # type: ignore[no-any-return]
        except GeneratorExit:  # coro.close(): nobody will wait for the completion, and the ring holds what it needs
            op.task = None
            self._abandoned.append(op)
            raise

    def _perform_now(self, op: TaskOperation) -> bool:
        """Enters the kernel with this one operation. False: it is not done yet, and in the ring or at least in the queue."""
        if not self.ring.submit(op):
            self._rehook()
            self._queue.append(op)
            return False
        self._guard(self._flush_ring)
        self._guard(self._reap_ring)
        if self._failure is not None:
            self._attend()
        return not op.state.in_kernel

    @enable_ki_protection
    def withdraw(self, op: TaskOperation) -> bool:
        """Takes back an operation that the ring has not seen."""
        if op.state.in_kernel:
            return False
        if op in self._queue:
            self._queue.remove(op)
        return True

    @enable_ki_protection
    def cancel(self, op: TaskOperation) -> None:
        self.ring.cancel(op)
        self._dirty = True
        self._rehook()

    @enable_ki_protection
    def release(self, ops: Iterable[TaskOperation], close: Callable[[], object]) -> None:
        """Closes a descriptor that operations may be using.

        close(2) alone cancels nothing and holds back the FIN, and an entry that was not submitted would find a stranger
        under the same number. So: what is queued is taken back, what is in the kernel is flushed and cancelled, the
        descriptor is closed, and one more reap collects what the cancels did. Tasks that wait get ECANCELED.
        """
        if self.closed or self._failure is not None or threading.get_ident() != self._thread:
            close()
            return
        for op in ops:
            if op.state.in_kernel:
                self.ring.cancel(op)
                self._dirty = True
            elif op.task is not None:
                self.withdraw(op)
                op.res = _ECANCELED
                self._wake(op)
        if self._dirty:
            self._guard(self._flush_ring)
        if self._dirty and self._failure is None:
            self._closing.append(close)  # the kernel is short of something; an entry with this number still waits
            return
        close()
        self._guard(self._reap_ring)

    # -- the two halves of a pass

    def _flush(self) -> None:
        self.passes += 1
        self._load, self._made = self._made, 0
        if self._abandoned:
            self._cancel_abandoned()
        if self._queue or self._dirty:
            self._guard(self._flush_ring)
        if self._late and self._failure is None:
            self._guard(self._flush_late)

    def _flush_ring(self) -> None:
        ring, queue = self.ring, self._queue
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
        self._dirty = not ring.flush() or bool(queue)
        if self._dirty:
            # The kernel was short of something: the wait that follows must end at once, so that we try again.
            self._come_back()
        while self._closing and not self._dirty:
            self._closing.pop()()

    def _come_back(self) -> None:
        """Makes trio's next wait end at once."""
        self._token.run_sync_soon(_nothing, idempotent=True)

    def _refuse(self, op: TaskOperation, exc: BaseException) -> None:
        def raise_it() -> NoReturn:
            raise exc

        op.res, op.raise_cancel = _ECANCELED, raise_it
        self._wake(op)

    def _reap(self) -> None:
        self._guard(self._reap_ring)

    def _reap_ring(self) -> None:
        self.ring.now = time.monotonic()
        for op in self.ring.drain():
            self._wake(op)  # type: ignore[arg-type]
        if self._idle_scope is not None and not self.ring.table and not self._queue:
            self._idle_scope.cancel()

    def _wake(self, op: TaskOperation) -> None:
        task = op.task
        if task is not None:
            op.task = None
            _reschedule(task, op)
        elif op.dispose is not None and op.res >= 0:
            op.dispose(op.res)

    def _guard(self, step: Callable[[], None]) -> None:
        if self._failure is None and not self.closed:
            try:
                step()
            except BaseException as exc:
                self._fail(exc)

    def _cancel_abandoned(self) -> None:
        while self._abandoned:
            op = self._abandoned.pop()
            if not self.withdraw(op):
                self.cancel(op)

    # -- life

    def start(self) -> None:
        trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
        trio.lowlevel.spawn_system_task(self._watch, name="trio_uring watchdog")
        self._rehook()

    async def _run(self) -> None:
        """Keeps the ring's descriptor armed in trio's epoll. Cancelled at the end of the run: stays until all is done."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self.ring.fileno())
                if not self._hooked:
                    self._rehook()
                    self._reap()
                self._hooked = False
        finally:
            self._rehook()
            with trio.CancelScope(shield=True) as self._idle_scope:
                while self._failure is None and (self.ring.table or self._queue):
                    await trio.lowlevel.wait_readable(self.ring.fileno())
                    self._reap()
            self._idle_scope = None
            self._attention = self._restart

    def _rehook(self) -> None:
        """Puts the instrument back if somebody removed it (trio does nothing if it is there): it is what flushes."""
        trio.lowlevel.add_instrument(self._hooks)

    async def _watch(self) -> None:
        """The safety net under the wake-ups: operations in flight and nothing reaped for a second means look once more.

        By a timerfd and not by trio's clock, so that a MockClock does not see it. `rescued` counts what it found: always 0,
        unless there is a defect here or in the kernel.
        """
        with Timer(self.watchdog_seconds) as timer:
            while True:
                before = self.ring.counters.completions
                await trio.lowlevel.wait_readable(timer.fileno())
                timer.read()
                if self.ring.table and self.ring.counters.completions == before:
                    self._reap()
                    if self.ring.counters.completions != before:
                        self.rescued += 1
                        _log.warning("trio_uring's watchdog found completions that had woken nobody; please report this")

    def _restart(self) -> None:
        """The run is ending and a task (a system task, an async generator) still wants something done."""
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
            self._attention = None
        except RuntimeError:  # the system nursery is closed: only async generators are being finalised now
            self._late = True

    def _flush_late(self) -> None:
        """No task can arm the ring any more: wait in the kernel, briefly, and make trio come back."""
        if self.ring.table:
            self.ring.wait(_LATE_WAIT)
            self._reap_ring()
            self._come_back()

    def _attend(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
        if self._failure is not None:
            raise trio.BrokenResourceError(f"trio_uring's driver has failed: {self._failure}") from self._failure
        if self.closed:
            raise RuntimeError(
                "this stream belongs to a trio.run that has ended, or to the process that this one was forked from"
            )
        if self._attention is not None:
            self._attention()

    def _fail(self, exc: BaseException) -> None:
        """The ring is gone. Everyone who waits is told; what the kernel may still write to stays pinned by the ring."""
        self._failure = exc
        self._attention = _nothing
        _log.error("trio_uring's driver has failed; all its operations fail", exc_info=exc)

        stranded: list[Any] = [*self.ring.table.values(), *self._queue]
        self._queue.clear()
        for op in stranded:
            error = trio.BrokenResourceError(f"trio_uring's driver has failed: {exc}")
            error.__cause__ = exc
            self._refuse(op, error)
        if self._idle_scope is not None:
            self._idle_scope.cancel()

    def disown(self) -> None:
        """In a forked child: the ring and the run are the parent's."""
        self.closed, self._attention = True, _nothing

    def close(self) -> None:
        """The end of the run: cancels what is left, waits for it, closes the ring or leaks it loudly."""
        if self.closed:
            return
        self.closed, self._attention = True, _nothing
        deadline = time.monotonic() + TEARDOWN_SECONDS
        try:
            self._cancel_abandoned()
            self._queue.clear()
            for op in list(self.ring.table.values()):
                op.task = None  # type: ignore[attr-defined]  # the run is over: it cannot be woken any more
                self.ring.cancel(op)
            self.ring.flush()
            self._reap_ring()
            while self.ring.table and time.monotonic() < deadline:
                self.ring.wait(_LATE_WAIT)
                self.ring.flush()
                self._reap_ring()
        except OSError as exc:
            _log.error("trio_uring could not empty its ring at the end of the run: %s", exc)
        self.ring.close()

    # -- looking in

    def statistics(self) -> Statistics:
        return snapshot(self.ring.counters, self.ring.info, self.ring.table.values(), len(self._queue), self)

    def operations(self) -> list[OperationInFlight]:
        now = time.monotonic()
        waiting: list[Any] = [*self.ring.table.values(), *self._queue]
        return [OperationInFlight.of(op, now) for op in waiting]


def _nothing() -> None:
    pass


class _Hooks(trio.abc.Instrument):
    """trio calls these once a pass. An instrument that raises is switched off, so nothing in here may raise."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def before_io_wait(self, timeout: float) -> None:
        self._driver._flush()

    def after_io_wait(self, timeout: float) -> None:
        self._driver._hooked = True
        self._driver._reap()

    def after_run(self) -> None:
        self._driver.close()


_current: trio.lowlevel.RunVar[Driver] = trio.lowlevel.RunVar("trio_uring driver")


def current_driver() -> Driver:
    """The driver of this trio.run, made on first use.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring cannot be used here; the message says why and what to change.
    """
    try:
        return _current.get()
    except LookupError:
        return install(Driver(UringRing()))


def install(driver: Driver) -> Driver:
    """Makes `driver` the one of this trio.run, and starts it."""
    try:
        _current.get()
    except LookupError:
        driver.start()
        _current.set(driver)
        _drivers.add(driver)
        return driver
    raise RuntimeError("this trio.run has a ring already")


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _disown_all() -> None:
    for driver in list(_drivers):
        driver.disown()


os.register_at_fork(after_in_child=_disown_all)
