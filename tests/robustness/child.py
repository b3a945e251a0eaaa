"""Runs a test's body in a process of its own, and looks at what it leaves behind.

    @in_child()
    async def test_something(flags): ...      # the body runs in a child, under trio.run; a plain function without

Rules of this file: standard library, trio and the package only. A child fails if its body raises; if anything is left of its
run (descriptors, rings, operations, pinned buffers, kernel threads); if an exception was ignored somewhere; or if the package
or trio logged a warning that the body did not ask for with `expect_log`. A child that hangs is shown with its stacks and the
state of its rings, and is a failure: no clock decides anything else.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

import trio_uring
from trio_uring import _driver, _poll_ring, _ring
from trio_uring._backend import BackendInfo
from trio_uring._op import Operation


def _on_epoll() -> bool:
    try:
        return trio_uring.backend_info().backend == "epoll"
    except trio_uring.RingUnavailableError:  # nothing runs here
        return False


ON_EPOLL = _on_epoll()  # TRIO_URING_BACKEND says so, or io_uring cannot be had
FLAGS = ("epoll",) if ON_EPOLL else ("coop", "defer", "plain")
BackendRing: Any = _poll_ring.PollRing if ON_EPOLL else _ring.UringRing
HANG_SECONDS = 45  # a child that takes longer is hung; faulthandler ends it at 60 should this file be at fault


def in_child(expect: int = 0, hang_seconds: float = HANG_SECONDS) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a test of `scenario`, whose arguments must be JSON. `expect`: the exit code, or -signal."""

    def decorate(scenario: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(scenario)
        def test(**arguments: Any) -> None:
            _run(scenario, arguments, expect, hang_seconds)

        test.scenario = scenario  # type: ignore[attr-defined]
        return test

    return decorate


def _run(scenario: Callable[..., Any], arguments: dict[str, Any], expect: int, hang_seconds: float) -> None:
    module = scenario.__module__
    root = Path(inspect.getfile(scenario)).parents[module.count(".")]
    code = f"import sys; sys.path[0] = {str(root)!r}; from {__name__} import main; main()"
    command = [sys.executable, "-W", "error", "-c", code, module, scenario.__name__, json.dumps(arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    hung = ""
    try:
        output, _ = child.communicate(timeout=hang_seconds)
    except subprocess.TimeoutExpired:
        hung = f"hung for {hang_seconds} s\n{_rings_of(child.pid)}"
        child.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        try:
            output, _ = child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # the child's own session: itself and its peers
            output, _ = child.communicate()
    print(output)
    if hung or child.returncode != expect:
        raise AssertionError(f"{scenario.__name__}({arguments}): {hung or f'exit code {child.returncode}'}\n{output}")


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


def main() -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(60, exit=True)
    module, name, arguments = sys.argv[1:]
    scenario = getattr(importlib.import_module(module), name).scenario
    watch = Watch()
    if inspect.iscoroutinefunction(scenario):
        trio.run(functools.partial(scenario, **json.loads(arguments)))
    else:
        scenario(**json.loads(arguments))
    watch.check()


class Watch:
    """What a process looks like before a test, to compare with afterwards."""

    def __init__(self) -> None:
        self._fds = open_fds()
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
        left = {fd: link for fd, link in open_fds().items() if fd not in self._fds}
        assert not left, f"descriptors left: {left}"
        assert not iou_threads(), f"kernel threads left: {iou_threads()}"
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


def expect_log(text: str) -> int:
    """Takes the log records with `text`, of which there must be at least one; returns how many there were."""
    found = [record for record in _logged.records if text in record.getMessage()]
    assert found, f"nothing with {text!r} was logged: {[record.getMessage() for record in _logged.records]}"
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


def open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def iou_threads() -> list[str]:
    """The kernel's io_uring worker threads in this process."""
    names = [Path(f"/proc/self/task/{tid}/comm") for tid in os.listdir("/proc/self/task")]
    return [name for name in (path.read_text().strip() for path in names if path.exists()) if name.startswith("iou-")]


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the package's insides, for what cannot be reached from outside; the only place that knows their names

_Driver = _driver.Driver


def open_rings() -> list[Any]:
    """The rings of this process that are open, or leaked."""
    return [*_ring._open_rings, *_poll_ring._open_rings]


def use_ring(ring: Callable[..., Any] = BackendRing, **options: Any) -> None:
    """Drivers that are made from now on open their rings so. On epoll there are no flags and no completion queue."""
    if ON_EPOLL:
        options = {name: value for name, value in options.items() if name not in ("flags", "cq_entries")}

    def open_ring(_: str | None) -> tuple[Any, BackendInfo]:
        opened = ring(**options)
        return opened, BackendInfo(opened.info.backend, "a test", "auto", opened.info.setup_flags)

    _driver.open_ring = open_ring


def set_watchdog(seconds: float) -> None:
    """For drivers that are made from now on."""
    _driver.Driver = functools.partial(_Driver, watchdog_seconds=seconds)  # type: ignore[misc]


def no_watchdog() -> None:
    """Its tick is a wake-up, and would cover the loss of another."""
    set_watchdog(3600)


def driver() -> Any:
    return _driver.current_driver()


def remove_hooks() -> bool:
    """Removes the driver's instrument from this run. False: it was not there."""
    try:
        trio.lowlevel.remove_instrument(driver()._hooks)
    except KeyError:
        return False
    return True
