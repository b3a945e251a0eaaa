"""The driver: how operations are done in one trio.run, from the first one to the end of the run.

By the ring (Driver): an engine, and a way to wait for its completions: the ring is trio's loop
(_driver/loop.py), or a task waits for it (_driver/task_way.py). Or, where there is no ring, by
readiness (_driver/readiness.py).

Rules of this file:

- The ring is closed after the run, with nothing in flight, or leaked loudly.
- A forked child never touches what is the parent's.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

import trio

from .._errors import RingBrokenError
from .._ring.protocol import SHORT_PAUSE
from .._ring.statistics import OperationInFlight, Statistics, snapshot
from .._trio import loop_runner
from .backend import BackendInfo, check_backend, open_ring, probe
from .chains import ChainEngine
from .loop import Loop
from .readiness import ReadinessDriver
from .task_way import TaskWay

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._ring.protocol import Ring
    from .engine import TaskOperation

_log = logging.getLogger("trio_uring")

WAYS = ("auto", "task")
VARIABLE = "TRIO_URING_DRIVER"
TEARDOWN_SECONDS = (
    1.0  # how long the end of a run waits for the kernel to give back what is in flight
)
_TEARDOWN_WAIT = 0.05  # seconds of one wait in the kernel then


class Driver(ChainEngine):
    """Runs an engine in this trio.run. Made on first use by `current_driver`.

    Args:
        runner: trio's, whose loop the ring becomes; None: a task waits for the ring.
    """

    def __init__(self, ring: Ring, backend: BackendInfo, runner: Any = None) -> None:
        super().__init__(ring)
        self.backend = backend
        if runner is None:
            self.task_way = TaskWay(self)
        self._way: Loop | TaskWay = self.task_way or Loop(self, runner)

    def start(self) -> None:
        self._way.start()

    def wait_in_kernel(self, seconds: float) -> None:
        """Blocks the thread until there is a completion."""

        def wait() -> None:
            self.ring.turn(seconds, self.done)
            self.wake_done()

        self._guard(wait)

    # -- the end

    def close(self) -> None:
        """The end of the run: cancels what is left, waits for it, closes the ring or leaks it
        loudly."""
        if self.closed:
            return
        self.attention = _refuse_ending
        try:
            self._empty_ring()
        except Exception as exc:
            _log.error("trio_uring could not empty its ring at the end of the run: %s", exc)
        self._end(_move_to_current_run)
        self.close_deferred()
        self.ring.close()

    def _empty_ring(self) -> None:
        deadline = time.monotonic() + TEARDOWN_SECONDS
        self._cancel_abandoned()
        self.give_up_queue()
        if isinstance(self.failure, RingBrokenError):
            # entries that it did not take may name descriptors that are closed by now
            raise self.failure
        op: Any
        for op in list(self.ring.table.values()):
            op.task = None  # it cannot be woken any more
            self.ring.cancel(op)
        self.ring.flush()
        self.reap_ring()
        while self.ring.table and time.monotonic() < deadline:
            self.ring.turn(_TEARDOWN_WAIT, self.done)
            self.wake_done()
            if self.ring.short:
                time.sleep(SHORT_PAUSE)

    def disown(self) -> None:
        """In a forked child: the ring and the run are the parent's."""
        if not self.closed:
            self.disowned = True
            self._end(_refuse_in_child)
            self._way.disown()

    def _end(self, attention: Callable[[TaskOperation], None]) -> None:
        self.closed, self.attention = True, attention
        self.pipes.close()

    # -- looking in

    def statistics(self) -> Statistics:
        return snapshot(
            self.counters, self.ring.info, list(self.ring.table.values()), len(self.queue), self
        )

    def operations(self) -> list[OperationInFlight]:
        return [self.describe(op) for op in self.pending()]

    def describe(self, op: TaskOperation) -> OperationInFlight:
        age = time.monotonic() - op.born if op.state.in_kernel else 0.0
        return OperationInFlight.of(op, op.state.name, age)

    def pending(self) -> list[Any]:
        """The operations that are queued or in the kernel."""
        return [*self.ring.table.values(), *self.queue]


def _move_to_current_run(op: TaskOperation) -> None:
    """The run that the stream was used in is over: this one goes on with it, as with trio's own
    sockets."""
    if op.state.in_kernel:
        raise RuntimeError(
            "this stream has an operation that the kernel did not give back at the end of an "
            "earlier trio.run"
        )
    driver = current_driver()
    lease = None if op.lease is None else op.lease()
    others = [] if lease is None else lease.operations
    if any(other.driver is not driver and not other.driver.closed for other in others):
        raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
    op.driver = driver


def _refuse_ending(op: TaskOperation) -> None:
    raise RuntimeError("this trio.run is over")


def _refuse_in_child(op: TaskOperation) -> None:
    raise RuntimeError(
        "this stream belongs to the process that this one was forked from; open a new one here"
    )


AnyDriver = Driver | ReadinessDriver

_current: trio.lowlevel.RunVar[AnyDriver] = trio.lowlevel.RunVar("trio_uring driver")
_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()

requested: trio.lowlevel.RunVar[str | None] = trio.lowlevel.RunVar("trio_uring backend", None)
"""The backend that this trio.run asks for ("uring", "readiness" or "auto"); set it with
`request_backend`."""

requested_way: trio.lowlevel.RunVar[str | None] = trio.lowlevel.RunVar(
    "trio_uring driver's way", None
)
"""How this trio.run is to wait for its ring: "auto" or "task"; None: as the environment variable
TRIO_URING_DRIVER says."""


def request_backend(backend: str) -> None:
    """Asks for a backend for this trio.run.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: this run has a driver already, on another one.
    """
    backend = check_backend(backend)
    try:
        used = _current.get().backend.backend
    except LookupError:
        requested.set(backend)
        return
    if backend not in ("auto", used):
        raise RuntimeError(
            f"trio_uring was used in this run already, on {used}: ask for {backend} before that"
        )


def request_way(way: str) -> None:
    """Asks for a way to wait for the ring of this trio.run.

    Raises:
        ValueError: there is no such way.
        RuntimeError: this run has a driver already, which waits in another way.
    """
    check_way(way)
    try:
        used = _current.get()
    except LookupError:
        requested_way.set(way)
        return
    if way == "task" and isinstance(used, Driver) and used.task_way is None:
        raise RuntimeError(
            "trio_uring was used in this run already, and the ring is its loop: ask for the task "
            "before that"
        )


def current_driver() -> AnyDriver:
    """The driver of this trio.run, made on first use.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and cannot be had, or there is no ring at all;
            the message says why and what to change.
        ValueError: another backend is asked for than there is.
    """
    try:
        driver = _current.get()
    except LookupError:
        return _start_chosen()
    # In a child that was forked in the middle of a run, and goes on in it, that is the parent's.
    return _start_chosen() if driver.disowned else driver


def _start_chosen() -> AnyDriver:
    runner = None if _asked_way() == "task" else loop_runner()
    ring, backend = open_ring(requested.get(), "coop" if runner is None else "defer")
    if ring is not None:
        return _start(ring, backend, runner)
    driver = ReadinessDriver(backend, _move_to_current_run)
    _current.set(driver)
    return driver


def _asked_way() -> str:
    way = requested_way.get() or os.environ.get(VARIABLE) or "auto"
    check_way(way)
    return way


def check_way(way: str) -> None:
    """Raises ValueError if there is no such way to wait for the ring."""
    if way not in WAYS:
        ways = ", ".join(map(repr, WAYS))
        raise ValueError(
            f"the driver is {way!r} ({VARIABLE}, or this run's argument): it is one of {ways}"
        )


def backend_info() -> BackendInfo:
    """What drives the streams of this trio.run, io_uring or readiness, and if it is readiness why.

    Outside of trio, and in a run that has not used a stream yet: what would be chosen now. It is
    found out by opening a ring and closing it.

    Raises:
        RingUnavailableError: io_uring is asked for (`TRIO_URING_BACKEND=uring`) and cannot be had,
            or the package was installed without its C extension.
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
        runner = None if _asked_way() == "task" else loop_runner()
        if runner is None and "DEFER_TASKRUN" in info.setup_flags:
            raise ValueError(
                "a ring with DEFER_TASKRUN wakes no task that waits for its descriptor"
            ) from None
        return _start(
            ring, BackendInfo(info.backend, reason, info.backend, info.setup_flags), runner
        )
    raise RuntimeError("this trio.run has a ring already")


def _start(ring: Ring, backend: BackendInfo, runner: Any) -> Driver:
    try:
        driver = Driver(ring, backend, runner)
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
