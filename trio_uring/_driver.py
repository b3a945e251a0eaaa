"""The driver: one engine per trio.run, from its first operation to the end of the run.

A pass of trio's scheduler:

    tasks run            they queue operations and park
    before_io_wait       flush: the queue goes to the ring, ONE io_uring_enter for all of it
    epoll_wait           trio's own; the ring's descriptor is in it, see _registration.py
    after_io_wait        reap: completions are drained and their tasks rescheduled; they run in this same pass

Rules of this file:

- The hooks flush and reap, so they are put back when somebody removes them. Where the descriptor is armed by the system task,
  that one is enough to reap, and the hooks save a pass.
- The system task stays, shielded, until nothing is queued or in flight: a task that waits for a completion can be cancelled
  only by that completion. Called upon later (a system task's cleanup, an async generator), it comes back.
- The ring is closed after the run, with nothing in flight, or leaked loudly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

import trio

from ._backend import BackendInfo, check_backend, open_ring, probe
from ._chains import ChainEngine
from ._errors import RingBrokenError
from ._registration import Registration
from ._ring import open_timer
from ._statistics import OperationInFlight, Statistics, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._contract import Ring
    from ._engine import TaskOperation

_log = logging.getLogger("trio_uring")

TEARDOWN_SECONDS = 1.0  # how long the end of a run waits for the kernel to give back what is in flight
WATCHDOG_SECONDS = 1.0
_LATE_WAIT = 0.05  # seconds that one pass may block when no task can wait for the ring any more; see _flush_late


class Driver(ChainEngine):
    """Runs an engine in this trio.run. Made on first use by `current_driver`."""

    def __init__(self, ring: Ring, backend: BackendInfo, watchdog_seconds: float = WATCHDOG_SECONDS) -> None:
        super().__init__(ring)
        self.backend = backend
        self.rescued = 0  # see _watch
        self._hooks = _Hooks(self)
        self._hooks_reaped = False  # in this pass
        self._long_wait = watchdog_seconds / 2
        self._left = False  # the hooks left what came in a long wait to the system task, see _watch
        self._late = False
        self._timer = open_timer(watchdog_seconds)
        self._registration = Registration(ring.fileno())

    def start(self) -> None:
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
            trio.lowlevel.spawn_system_task(self._watch, name="trio_uring watchdog")
        except RuntimeError:  # first used while async generators are finalised: system tasks are over
            self._late = True
        self.rehook()

    def rehook(self) -> None:
        trio.lowlevel.add_instrument(self._hooks)  # trio does nothing if it is there

    # -- system tasks

    async def _run(self) -> None:
        """Waits for the ring. Cancelled at the end of the run: stays until all is done."""
        try:
            while self._working():
                await self._registration.wait()
                if not self._hooks_reaped:
                    self.rehook()
                    self.reap()
                self._hooks_reaped = False
        except trio.Cancelled:
            self.rehook()
            # Asked again after each scope: a task that was woken last may have queued the next before we ran.
            while self._working() and (self.ring.table or self.queue):
                with trio.CancelScope(shield=True) as self.idle_scope:
                    await self._registration.wait()
                    self.reap()
            self.idle_scope = None
            if self._working():  # in a forked child it is the parent's
                self.attention = self._restart
            raise
        except OSError as exc:  # somebody closed the ring's descriptor
            if not self.closed:
                self.fail(exc)

    def _working(self) -> bool:
        return self.failure is None and not self.closed

    def _restart(self, op: TaskOperation) -> None:
        """The run is ending and a task (a system task, an async generator) still wants something done."""
        try:
            trio.lowlevel.spawn_system_task(self._run, name="trio_uring driver")
            self.attention = None
        except RuntimeError:  # the system nursery is closed: only async generators are being finalised now
            self._late = True

    async def _watch(self) -> None:
        """The safety net under the wake-ups: once a second, see to it that the hooks are there, and look for completions.

        By a timerfd and not by trio's clock, so that a MockClock does not see it. `rescued` counts wake-ups that were lost:
        always 0, unless there is a defect here or in the kernel, or a number was mixed up, see _registration.py. After a long
        wait the hooks leave what has come to us: completions that are here now must have been able to wake trio.
        """
        while self._working():
            await trio.lowlevel.wait_readable(self._timer)
            with contextlib.suppress(BlockingIOError):
                os.read(self._timer, 8)
            if self._restore_hooks() and self._left and self.ring.ready() and self._registration.is_lost():
                self.rescued += 1
                _log.warning("trio_uring's watchdog found completions that had woken nobody; please report this")
            self.reap()

    def _restore_hooks(self) -> bool:
        """Puts the hooks back. False: somebody had removed them."""
        try:
            trio.lowlevel.remove_instrument(self._hooks)
        except KeyError:
            return False
        finally:
            self.rehook()
        return True

    # -- hooks

    def before_io_wait(self) -> None:
        self.flush()
        if self._late:
            self._guard(self._flush_late)

    def _flush_late(self) -> None:
        """No task can wait for the ring any more: wait in the kernel, briefly, and make trio come back."""
        if self.ring.table:
            self.ring.wait(_LATE_WAIT)
            self._reap_ring()
            self.come_back()

    def after_io_wait(self) -> None:
        # `now` is the time of the last reap.
        self._left = not self._left and time.monotonic() - self.ring.now > self._long_wait
        self._hooks_reaped = not self._left
        if self._left:
            self.come_back()  # the next pass reaps, whoever was woken in this one
        else:
            self.reap()

    # -- the end

    def close(self) -> None:
        """The end of the run: cancels what is left, waits for it, closes the ring or leaks it loudly."""
        if self.closed:
            return
        self.idle_scope = None  # of a run that is over
        self.attention = _refuse_ending
        deadline = time.monotonic() + TEARDOWN_SECONDS
        try:
            self._cancel_abandoned()
            self.give_up_queue()
            if isinstance(self.failure, RingBrokenError):
                raise self.failure  # entries that it did not take may name descriptors that are closed by now
            op: Any
            for op in list(self.ring.table.values()):
                op.task = None  # it cannot be woken any more
                self.ring.cancel(op)
            self.ring.flush()
            self._reap_ring()
            while self.ring.table and time.monotonic() < deadline:
                self.ring.wait(_LATE_WAIT)
                self.ring.flush()
                self._reap_ring()
        except Exception as exc:
            _log.error("trio_uring could not empty its ring at the end of the run: %s", exc)
        self._end(_move_to_current_run)
        self._registration.end()
        self._close_deferred()
        self.ring.close()

    def fail(self, exc: BaseException) -> None:
        self._registration.end()  # nobody reaps any more: what is readable would keep trio awake
        super().fail(exc)

    def disown(self) -> None:
        """In a forked child: the ring and the run are the parent's."""
        if not self.closed:
            self._end(_refuse_in_child)
            self._registration.close()

    def _end(self, attention: Callable[[TaskOperation], None]) -> None:
        self.closed, self.attention = True, attention
        os.close(self._timer)
        self.pipes.close()

    # -- looking in

    def statistics(self) -> Statistics:
        return snapshot(self.ring, len(self.queue), self)

    def operations(self) -> list[OperationInFlight]:
        now = time.monotonic()
        waiting: list[Any] = [*self.ring.table.values(), *self.queue]
        return [OperationInFlight.of(op, now) for op in waiting]


def _move_to_current_run(op: TaskOperation) -> None:
    """The run that the stream was used in is over: this one goes on with it, as with trio's own sockets."""
    if op.state.in_kernel:
        raise RuntimeError("this stream has an operation that the kernel did not give back at the end of an earlier trio.run")
    driver = current_driver()
    if any(other.driver is not driver and not other.driver.closed for other in op.siblings):
        raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
    op.driver = driver


def _refuse_ending(op: TaskOperation) -> None:
    raise RuntimeError("this trio.run is over")


def _refuse_in_child(op: TaskOperation) -> None:
    raise RuntimeError("this stream belongs to the process that this one was forked from; open a new one here")


class _Hooks(trio.abc.Instrument):
    """trio calls these once a pass. An instrument that raises is switched off, so nothing in here may raise."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def before_io_wait(self, timeout: float) -> None:
        self._driver.before_io_wait()

    def after_io_wait(self, timeout: float) -> None:
        self._driver.after_io_wait()

    def after_run(self) -> None:
        self._driver.close()


_current: trio.lowlevel.RunVar[Driver] = trio.lowlevel.RunVar("trio_uring driver")
_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()

requested: trio.lowlevel.RunVar[str | None] = trio.lowlevel.RunVar("trio_uring backend", None)
"""The backend that this trio.run asks for ("uring", "epoll" or "auto"); set it with `request_backend`."""


def request_backend(backend: str) -> None:
    """Asks for a backend for this trio.run.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: this run has a driver already, on another one.
    """
    check_backend(backend)
    try:
        used = _current.get().backend.backend
    except LookupError:
        requested.set(backend)
        return
    if backend not in ("auto", used):
        raise RuntimeError(f"trio_uring was used in this run already, on {used}: ask for {backend} before that")


def current_driver() -> Driver:
    """The driver of this trio.run, made on first use.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and cannot be had, or there is no ring at all; the message says why and
            what to change.
        ValueError: another backend is asked for than there is.
    """
    try:
        return _current.get()
    except LookupError:
        return _start(*open_ring(requested.get()))


def backend_info() -> BackendInfo:
    """What drives the streams of this trio.run, io_uring or epoll, and if it is epoll why.

    Outside of trio, and in a run that has not used a stream yet: what would be chosen now. It is found out by opening a ring
    and closing it.

    Raises:
        RingUnavailableError: io_uring is asked for (`TRIO_URING_BACKEND=uring`) and cannot be had, or the package was
            installed without its C extension.
        ValueError: another backend is asked for than there is.
    """
    try:
        return _current.get().backend
    except LookupError:
        return probe(requested.get())
    except RuntimeError:
        return probe()


def install(ring: Ring) -> Driver:
    """Makes a driver of `ring` the one of this trio.run, and starts it."""
    try:
        _current.get()
    except LookupError:
        info = ring.info
        reason = None if info.backend == "uring" else "this run was given its ring"
        return _start(ring, BackendInfo(info.backend, reason, info.backend, info.setup_flags))
    raise RuntimeError("this trio.run has a ring already")


def _start(ring: Ring, backend: BackendInfo) -> Driver:
    try:
        driver = Driver(ring, backend)
    except BaseException:
        ring.close()
        raise
    _current.set(driver)
    _drivers.add(driver)
    driver.start()
    return driver


def _disown_all() -> None:
    for driver in list(_drivers):
        driver.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
