"""The driver: performs the operations of one trio.run, from the first one to the end of the run.

A RingDriver has an engine and a way to wait for its completions: either the ring is trio's loop
(_driver/loop.py), or a task waits for it (_driver/task_way.py). Where there is no ring, a
ReadinessDriver does the work.

Rules of this file:

- The ring is closed after the run, with nothing in flight, or leaked loudly.
- A forked child never touches what belongs to its parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio

from .._ring.statistics import Statistics, snapshot
from .._trio import call_at_end, loop_runner
from .backend import (
    BackendInfo,
    asks_for,
    check_backend,
    check_variable,
    log_fallback,
    open_ring,
    probe,
)
from .ending import empty
from .engine import Engine
from .looking import in_flight
from .loop import Loop
from .phases import CHILD, ENDING, OVER
from .readiness import NO_RING, ReadinessEngine
from .task_way import TaskWay

if TYPE_CHECKING:
    from .._ring.protocol import Ring
    from .._ring.statistics import OperationInFlight
    from .operation import TaskOperation

_log = logging.getLogger("trio_uring")

WAYS = ("auto", "task")
VARIABLE = "TRIO_URING_DRIVER"
# Seconds that the end of a run waits for the kernel to give back what is in flight.
TEARDOWN_SECONDS = 1.0

AnyEngine = Engine | ReadinessEngine


class RingDriver:
    """An engine on a ring in one trio.run, and a way to wait for that ring.

    Args:
        ring: belongs to the driver from now on.
        backend: describes it.
        runner: trio's runner, whose loop the ring becomes; None: a task waits for the ring.

    Attributes:
        engine: performs operations.
        way: waits for its ring.
        backend: describes the ring.
    """

    def __init__(self, ring: Ring, backend: BackendInfo, runner: Any = None) -> None:
        self.engine = engine = Engine(ring, _move_to_current_run)
        self.backend = backend
        self.way: Loop | TaskWay = (
            TaskWay(engine, self.close) if runner is None else Loop(engine, runner, self.close)
        )

    def close(self) -> None:
        """The end of the run: cancels what is left, waits for it, closes or leaks the ring."""
        engine = self.engine
        if engine.phase.over:
            return
        engine.enter(ENDING)
        try:
            empty(engine, TEARDOWN_SECONDS)
        except Exception as exc:
            _log.error("trio_uring could not empty its ring at the end of the run: %s", exc)
        engine.enter(OVER)
        engine.close_deferred()
        engine.run_last_errands()
        engine.ring.close()

    def disown(self) -> None:
        """Called in a forked child: the ring and the run are the parent's."""
        if not self.engine.phase.over:
            self.engine.enter(CHILD)
            self.way.disown()

    # -- what it is doing

    def statistics(self) -> Statistics:
        engine, ring = self.engine, self.engine.ring
        in_flight, queued = list(ring.table.values()), len(engine.queue)
        return snapshot(
            engine.counters, ring.info, in_flight, queued, engine, ring.enters, ring.completions
        )

    def operations(self) -> list[OperationInFlight]:
        return [self.describe(op) for op in self.pending()]

    def describe(self, op: TaskOperation) -> OperationInFlight:
        age = time.monotonic() - op.born if op.state.in_kernel else 0.0
        return in_flight(op, op.state.name, age)

    def pending(self) -> list[Any]:
        """The operations that are queued or in the kernel."""
        return [*self.engine.ring.table.values(), *self.engine.queue]


class ReadinessDriver:
    """The driver where there is no ring: an engine that needs no way to wait."""

    def __init__(self, backend: BackendInfo) -> None:
        self.engine = ReadinessEngine(_move_to_current_run)
        self.backend = backend
        call_at_end(self.close)

    def close(self) -> None:
        """The end of the run."""
        self.engine.enter(OVER)

    def disown(self) -> None:
        """Called in a forked child, which goes on as with trio's own sockets."""

    def statistics(self) -> Statistics:
        return snapshot(self.engine.counters, NO_RING, self.pending(), 0, self.engine)

    def operations(self) -> list[OperationInFlight]:
        return [self.describe(op) for op in self.pending()]

    def describe(self, op: TaskOperation) -> OperationInFlight:
        now = time.monotonic()
        return in_flight(op, "WAITING", now - self.engine.waiting.get(op, now))

    def pending(self) -> list[TaskOperation]:
        """The operations that tasks wait for."""
        return list(self.engine.waiting)


AnyDriver = RingDriver | ReadinessDriver


def _move_to_current_run(op: TaskOperation) -> AnyEngine:
    """Moves an operation here when its stream was used in a run that is over, as trio's may be."""
    if op.state.in_kernel:
        raise RuntimeError(
            "this stream has an operation that the kernel did not give back at the end of an "
            "earlier trio.run"
        )
    engine = current_driver().engine
    way = None if op.way is None else op.way()
    if way is not None and way.used_elsewhere(engine):
        raise RuntimeError("this stream belongs to a trio.run in another thread; use it there")
    op.engine = engine
    return engine


_current: trio.lowlevel.RunVar[AnyDriver] = trio.lowlevel.RunVar("trio_uring driver")
_drivers: weakref.WeakSet[AnyDriver] = weakref.WeakSet()

requested: trio.lowlevel.RunVar[str | None] = trio.lowlevel.RunVar("trio_uring backend", None)
"""The backend that this trio.run asks for ("uring", "readiness", "auto" or "off"); set it with
`request_backend`."""

enabled: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_uring enabled", False)
"""Whether this trio.run is enabled; set it with `note_enabled`."""

restrict: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("trio_uring restricts", False)
"""Whether this trio.run asks for a restricted ring; set it with `request_restricted`."""

requested_way: trio.lowlevel.RunVar[str | None] = trio.lowlevel.RunVar(
    "trio_uring driver's way", None
)
"""How this trio.run is to wait for its ring: "auto" or "task"; None: as the environment variable
TRIO_URING_DRIVER says."""


def request_backend(backend: str) -> None:
    """Asks for a backend for this trio.run; of "off", that its own classes work by readiness.

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
    if backend not in ("auto", used) and (backend, used) != ("off", "readiness"):
        raise RuntimeError(
            f"trio_uring was used in this run already, on {used}: ask for {backend} before that"
        )


def request_restricted() -> None:
    """Asks for a restricted ring for this trio.run. Nothing takes that back.

    Raises:
        RuntimeError: this run has a ring already, which is not restricted.
    """
    try:
        used = _current.get().backend
    except LookupError:
        restrict.set(True)
        return
    if used.backend == "uring" and not used.restricted:
        raise RuntimeError(
            "trio_uring was used in this run already, on a ring that is not restricted: ask for "
            "that before"
        )


def note_enabled() -> None:
    """Notes that this trio.run is enabled: if it falls back, or has already, a WARNING says so."""
    enabled.set(True)
    with contextlib.suppress(LookupError):
        log_fallback(_current.get().backend, True)


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
    if way == "task" and isinstance(used, RingDriver) and isinstance(used.way, Loop):
        raise RuntimeError(
            "trio_uring was used in this run already, and the ring is its loop: ask for the task "
            "before that"
        )


def current_driver() -> AnyDriver:
    """The driver of this trio.run, made on first use.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and not available; the message says why and what
            to change.
        ValueError: the backend or the way to wait that is asked for does not exist.
    """
    try:
        driver = _current.get()
    except LookupError:
        return _start_chosen()
    # In a forked child that goes on in the middle of a run, that driver is the parent's.
    return _start_chosen() if driver.engine.phase is CHILD else driver


def _start_chosen() -> AnyDriver:
    runner = None if _asked_way() == "task" else loop_runner()
    flags = "coop" if runner is None else "defer"
    ring, backend = open_ring(requested.get(), flags, restrict.get())
    log_fallback(backend, enabled.get())
    if ring is not None:
        return _start(ring, backend, runner)
    driver = ReadinessDriver(backend)
    _current.set(driver)
    _drivers.add(driver)
    return driver


def _asked_way() -> str:
    way = requested_way.get() or os.environ.get(VARIABLE) or "auto"
    check_way(way)
    return way


def check_variables(backend: bool = True) -> None:
    """Raises ValueError if one of the environment variables that choose has a wrong value.

    Args:
        backend: False: that of the backend does not matter, since it will be another.
    """
    if backend:
        check_variable()
    check_way_variable()


def check_way_variable() -> None:
    """Raises ValueError if the environment variable TRIO_URING_DRIVER is wrong."""
    check_way(os.environ.get(VARIABLE) or "auto")


def check_ring(backend: str | None, restrict: bool = False) -> None:
    """Raises RingUnavailableError if `backend`, or else the environment, asks for what is not here.

    A run that works already needs no second ring for that: memory may be short.
    """
    if asks_for("uring", backend):
        try:
            _current.get()
            return
        except (LookupError, RuntimeError):  # none yet, or outside of trio
            pass
        probe(backend, restrict)


def check_way(way: str) -> None:
    """Raises ValueError if there is no such way to wait for the ring."""
    if way not in WAYS:
        ways = ", ".join(map(repr, WAYS))
        raise ValueError(
            f"the driver is {way!r} ({VARIABLE}, or this run's argument): it is one of {ways}"
        )


def backend_info() -> BackendInfo:
    """What drives the streams of this trio.run, io_uring or readiness; if readiness, also why.

    Outside of trio, and in a run that has not used a stream yet, it is what would be chosen now:
    found out by opening a ring and closing it.

    Raises:
        RingUnavailableError: io_uring is asked for (`TRIO_URING_BACKEND=uring`) and not available,
            or the package was installed without its C extension.
        ValueError: the backend that is asked for does not exist.
    """
    try:
        return _current.get().backend
    except LookupError:
        asked: tuple[Any, ...] = requested.get(), restrict.get()
    except RuntimeError:
        asked = ()
    return probe(*asked)  # what it raises is no consequence of the above


def install(ring: Ring) -> RingDriver:
    """Makes `ring` the ring of this trio.run, and starts its driver."""
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
        backend = BackendInfo(
            info.backend, reason, info.backend, info.setup_flags, restricted=info.restricted
        )
        return _start(ring, backend, runner)
    raise RuntimeError("this trio.run has a ring already")


def _start(ring: Ring, backend: BackendInfo, runner: Any) -> RingDriver:
    try:
        driver = RingDriver(ring, backend, runner)
    except BaseException:
        ring.close()
        raise
    _current.set(driver)
    _drivers.add(driver)
    driver.way.start()
    return driver


def going_on() -> list[AnyDriver]:
    """The drivers of all runs of this process that are going on, in whichever thread."""
    return [driver for driver in list(_drivers) if not driver.engine.phase.over]


def _disown_all() -> None:
    for driver in list(_drivers):
        driver.disown()
        if driver.engine.thread != get_ident():  # a child has the thread that forked, and no other
            _drivers.discard(driver)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
