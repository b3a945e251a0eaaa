"""Runs a test's body in a separate process, and checks what it leaves behind.

    @in_child()
    async def test_something(flags): ...  # the body runs in a child, under trio.run

A plain function runs there without trio.run.

Rules of this file: standard library, trio and the package only. A child fails if its body raises;
if anything is left of its run (descriptors, rings, operations, pinned buffers, kernel threads); if
an exception was ignored somewhere; or if the package or trio logged a warning that the body did not
ask for with `expect_log`. A child that hangs is a failure, and its stacks and the state of its
rings are shown; no clock decides anything else. A child begins with one thread, because many fork:
a forked process has the locks that another thread held, and nobody who would release them (those of
AddressSanitizer's malloc, for instance).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_uring
from trio_uring._driver import invariants
from trio_uring._driver import run as _driver
from trio_uring._driver.backend import BackendInfo
from trio_uring._ring import base
from trio_uring._ring import uring as _ring
from trio_uring._ring.op import Operation

from .disks import pipes_do_not_wait
from .forks import Child, Server
from .long_cases import long_cases
from .streams import open_descriptors

invariants.CHECKED = True


def _by_readiness() -> bool:
    try:
        return trio_uring.backend_info().backend == "readiness"
    except trio_uring.RingUnavailableError:  # nothing runs here
        return False


BY_READINESS = _by_readiness()  # TRIO_URING_BACKEND says so, or io_uring cannot be had
# A ladder of setup flags, and the way to wait: the ring is trio's loop, or a task waits for it. For
# `use_ring`.
_COOP, _PLAIN, _TASK_PLAIN = (
    pytest.param(flags, marks=pytest.mark.long) for flags in ("coop", "plain", "task plain")
)
EVERY_FLAGS = ("readiness",) if BY_READINESS else ("defer", _COOP, _PLAIN, "task coop", _TASK_PLAIN)
FLAGS = ("readiness",) if BY_READINESS else ("defer", _COOP, "task coop")  # those that differ most
OF_TASK = ("readiness",) if BY_READINESS else ("task coop", "task plain")  # as guests must have it
BackendRing: Any = _ring.UringRing
# A child that takes longer is hung. Less than what conftest.py gives to a test.
HANG_SECONDS = 100 * (3 if long_cases() else 1)


def in_child(expect: int = 0) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a test of `scenario`, whose arguments must be JSON. `expect`: the exit code, or
    -signal."""

    def decorate(scenario: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(scenario)
        def test(**arguments: Any) -> None:
            _run(scenario, arguments, expect)

        test.scenario = scenario  # type: ignore[attr-defined]
        return test

    return decorate


_server: Server | None = None


def _run(scenario: Callable[..., Any], arguments: dict[str, Any], expect: int) -> None:
    global _server
    if _server is None:
        _server = Server()
    hung = ""
    with tempfile.TemporaryFile() as output:
        child = _server.start(scenario.__module__, scenario.__name__, arguments, output)
        try:
            status = child.wait(HANG_SECONDS)
        except TimeoutError:
            hung = f"hung for {HANG_SECONDS} s\n{_rings_of(child.pid)}"
            status = _end(child)
        output.seek(0)
        said = output.read().decode(errors="replace")
    print(said)
    if hung or status != expect:
        raise AssertionError(
            f"{scenario.__name__}({arguments}): {hung or f'exit code {status}'}\n{said}"
        )


def _end(child: Child) -> int:
    os.kill(child.pid, signal.SIGABRT)  # faulthandler prints the stacks
    try:
        return child.wait(5)
    except TimeoutError:
        os.killpg(child.pid, signal.SIGKILL)  # the child's own session: itself and its peers
        return child.wait(60)


def _rings_of(pid: int) -> str:
    """/proc/<pid>/fdinfo of the rings: queue heads and tails, PollList, CqOverflowList."""
    found = []
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if "io_uring" in os.readlink(entry.path):
                found.append(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text())
    except OSError as exc:
        found.append(str(exc))
    return "\n".join(found)


# ---- in the child


def run_scenario(module: str, name: str, arguments: dict[str, Any]) -> None:
    faulthandler.enable()
    scenario = getattr(importlib.import_module(module), name).scenario
    watch = Watch()
    if inspect.iscoroutinefunction(scenario):
        trio.run(functools.partial(scenario, **arguments))
    else:
        scenario(**arguments)
    watch.check()


class Watch:
    """What a process looks like before a test, to compare with afterwards."""

    def __init__(self) -> None:
        self._fds = open_descriptors()
        self._threads = set(threading.enumerate())
        self._ignored: list[str] = []
        sys.unraisablehook = lambda info: self._note(info.exc_value, f"ignored in {info.object!r}")
        threading.excepthook = lambda info: self._note(info.exc_value, f"in {info.thread}")
        logging.getLogger().addHandler(_logged)

    def _note(self, exc: BaseException | None, where: str) -> None:
        self._ignored.append(f"{where}: {''.join(traceback.format_exception(exc)) if exc else exc}")

    def check(self) -> None:
        self.check_left()
        assert not self._ignored, "\n".join(self._ignored)
        assert not _logged.records, [record.getMessage() for record in _logged.records]

    def check_left(self) -> None:
        """Nothing in flight, no descriptor, no pinned buffer and no thread is left."""
        gc.collect()
        assert not open_rings(), f"rings left: {open_rings()}"
        operations = [thing for thing in gc.get_objects() if isinstance(thing, Operation)]
        busy = [op for op in operations if op.state.in_kernel or op.pin is not None]
        assert not busy, f"operations left: {busy}"
        left = {fd: link for fd, link in open_descriptors().items() if fd not in self._fds}
        assert not left, f"descriptors left: {left}"
        until_no_iou_threads()
        assert set(threading.enumerate()) <= self._threads | trio_threads(), threading.enumerate()


def trio_threads() -> set[threading.Thread]:
    """The threads that trio keeps for a while to use again."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("Trio thread")}


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_logged = _Records()


def logged(text: str) -> int:
    """How many log records with `text` there were, and have not been taken."""
    return sum(text in record.getMessage() for record in _logged.records)


def expect_log(text: str) -> int:
    """Takes the log records with `text`, of which there must be at least one; returns how many
    there were."""
    found = [record for record in _logged.records if text in record.getMessage()]
    assert found, (
        f"nothing with {text!r} was logged: {[record.getMessage() for record in _logged.records]}"
    )
    _logged.records = [record for record in _logged.records if record not in found]
    return len(found)


def pair() -> tuple[trio_uring.SocketStream, socket.socket]:
    """A stream, and the plain socket at its other end."""
    ours, theirs = socket.socketpair()
    return trio_uring.SocketStream(ours), theirs


def stream_pair() -> tuple[trio_uring.SocketStream, trio_uring.SocketStream]:
    """Both ends as streams."""
    ours, theirs = socket.socketpair()
    return trio_uring.SocketStream(ours), trio_uring.SocketStream(theirs)


def iou_threads() -> list[str]:
    """The kernel's io_uring worker threads in this process."""
    names = []
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            names.append(Path(f"/proc/self/task/{tid}/comm").read_text().strip())
    return [name for name in names if name.startswith("iou-")]


def until_no_iou_threads() -> None:
    """Those of a ring that is closed end after it, each when it has done what it was doing."""
    if not pipes_do_not_wait():
        return
    deadline = time.monotonic() + 30
    while left := iou_threads():
        assert time.monotonic() < deadline, f"kernel threads left: {left}"
        time.sleep(0.001)


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the package's insides, for what cannot be reached from outside; the only place that knows
# their names


def open_rings() -> list[Any]:
    """The rings of this process that are open, or leaked."""
    return list(base.open_rings)


def use_ring(ring: Callable[..., Any] = BackendRing, flags: str = "", **options: Any) -> None:
    """Drivers that are made from now on open their rings so. `flags`: one of EVERY_FLAGS. By
    readiness, there are none."""
    if BY_READINESS:
        return
    ladder = flags.removeprefix("task ")
    if ladder:
        options["flags"] = ladder
        os.environ[_driver.VARIABLE] = "task" if flags != ladder else "auto"

    def open_ring(_: str | None, ladder: str, restrict: bool) -> tuple[Any, BackendInfo]:
        if restrict:
            options["restrict"] = True
        opened = ring(**{"flags": ladder, **options})
        return opened, BackendInfo(opened.info.backend, "a test", "auto", opened.info.setup_flags)

    _driver.open_ring = open_ring


def driver() -> Any:
    return _driver.current_driver().engine


def remove_hooks() -> bool:
    """Removes the instrument of the task that waits for the ring. False: it was not there."""
    try:
        trio.lowlevel.remove_instrument(driver().hooks)
    except KeyError:
        return False
    return True


class Passes(trio.abc.Instrument):
    """Counts trio's passes: what must not spin, or must come within so many of them, is counted in
    these."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1
