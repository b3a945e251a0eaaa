"""A whole process enabled: by install(), and by `trio.run = trio_uring.run`.

Rules of this file: every test ends with trio's own runs, and nothing of trio is left changed.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from support.child import expect_log, in_child
from support.command import no_ring
from support.fallback import auto
from support.seccomp import IO_URING_SETUP, deny
from trio import run as imported_run
from trio._core import _run as _trio_run
from trio.lowlevel import start_guest_run as imported_guest_run

import trio_uring
from trio_uring._driver import backend as _backend
from trio_uring._driver.run import current_driver
from trio_uring._driver.task_way import TaskWay

STOCK = trio.run, trio.lowlevel.start_guest_run, _trio_run.setup_runner


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    trio_uring.uninstall()
    assert (trio.run, trio.lowlevel.start_guest_run, _trio_run.setup_runner) == STOCK
    assert not trio.run(is_enabled)


async def is_enabled() -> bool:
    left, right = trio.socket.socketpair()
    with left, right:
        await left.send(b"x")
        assert await right.recv(1) == b"x"
        stream = trio.SocketStream(left)
        assert isinstance(left, trio_uring.UringSocket) == (type(stream) is trio_uring.SocketStream)
        return isinstance(left, trio_uring.UringSocket)


async def backend() -> tuple[bool, str]:
    return await is_enabled(), trio_uring.backend_info().requested


def guest_run(start: Any) -> Any:
    """The result of is_enabled in a guest run."""
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start(
        is_enabled,
        run_sync_soon_threadsafe=todo.put,
        done_callback=todo.put,
        host_uses_signal_set_wakeup_fd=True,
    )
    while callable(step := todo.get()):
        step()
    return step.unwrap()


def test_trio_run_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "run", trio_uring.run)
    assert trio.run(is_enabled)
    assert trio_uring.run(is_enabled)
    trio_uring.install()
    assert trio.run(is_enabled)


def test_every_run_by_every_name() -> None:
    trio_uring.install()
    assert trio.run is imported_run
    for run in (trio.run, imported_run, trio_uring.run):
        assert run(is_enabled)
    assert trio.run(is_enabled, instruments=(trio_uring.Enable(), trio.abc.Instrument()))
    for start in (trio.lowlevel.start_guest_run, imported_guest_run):
        assert guest_run(start)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(trio.run(is_enabled)))
    thread.start()
    thread.join()
    assert found == [True]


def test_it_is_idempotent_and_ends() -> None:
    trio_uring.uninstall()
    for _ in range(3):
        trio_uring.install()
        trio_uring.install(streams=True)
    trio_uring.uninstall()
    assert not trio.run(is_enabled)
    assert not guest_run(trio.lowlevel.start_guest_run)
    trio_uring.uninstall()
    trio_uring.install()
    assert trio.run(is_enabled)


def test_a_run_that_goes_on_is_left_alone() -> None:
    async def main() -> None:
        trio_uring.install()
        assert not await is_enabled()
        assert await trio.to_thread.run_sync(trio.run, is_enabled)
        trio_uring.uninstall()

    trio.run(main)

    async def enabled() -> None:
        trio_uring.uninstall()
        assert await is_enabled()

    trio_uring.install()
    trio.run(enabled)


def test_whoever_wraps_it_once_more_is_left_alone() -> None:
    trio_uring.install()
    ours = _trio_run.setup_runner
    _trio_run.setup_runner = theirs = lambda *args: ours(*args)
    try:
        assert trio.run(is_enabled)
        trio_uring.uninstall()
        assert _trio_run.setup_runner is theirs
        assert not trio.run(is_enabled)
    finally:
        _trio_run.setup_runner = STOCK[2]


def test_the_arguments() -> None:
    async def way() -> bool:
        await is_enabled()
        driver = current_driver()
        return isinstance(getattr(driver, "way", None), TaskWay)

    async def class_of_a_stream() -> type:
        left, right = trio.socket.socketpair()
        with left, right:
            return type(trio.SocketStream(left))

    trio_uring.install(streams=False)
    assert trio.run(class_of_a_stream) is trio.SocketStream
    trio_uring.install("readiness")  # the last ones hold
    assert trio.run(class_of_a_stream) is trio_uring.SocketStream
    assert trio.run(backend) == trio_uring.run(backend) == (True, "readiness")
    trio_uring.install(driver="task")
    assert trio.run(way) == (trio_uring.backend_info().backend == "uring")


def test_what_a_run_asks_for_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_backend.VARIABLE, raising=False)
    trio_uring.install("auto")
    assert trio.run(backend) == (True, "auto")
    assert trio_uring.run(backend, backend="readiness") == (True, "readiness")
    assert trio_uring.run(backend, backend="off") == (False, "off")
    trio_uring.install("off")
    assert trio.run(backend) == (False, "off")
    assert trio_uring.run(backend, backend="readiness") == (True, "readiness")
    assert trio_uring.run(backend) == (True, "auto")


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    trio_uring.install()
    monkeypatch.setenv(_backend.VARIABLE, "off")
    assert trio.run(backend) == (False, "off")
    monkeypatch.setenv(_backend.VARIABLE, "readiness")
    assert trio.run(backend) == (True, "readiness")
    monkeypatch.setenv(_backend.VARIABLE, "nonsense")
    with pytest.raises(ValueError, match="TRIO_URING_BACKEND is 'nonsense': a backend is one of"):
        trio.run(backend)
    with pytest.raises(ValueError, match="TRIO_URING_BACKEND is 'nonsense'"):
        guest_run(trio.lowlevel.start_guest_run)
    monkeypatch.undo()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'kqueue'"):
        trio_uring.install("kqueue")
    with pytest.raises(ValueError, match="'thread'"):
        trio_uring.install(driver="thread")
    assert not trio.run(is_enabled)


def test_runs_inside_of_runs_are_refused_as_ever() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="from inside"):
            trio.run(is_enabled)

    trio_uring.install()
    trio.run(main)


@pytest.mark.skipif(
    importlib.util.find_spec("trio_uring._uring") is None,
    reason="without the extension that is the reason",
)
@in_child()
def test_where_io_uring_is_refused() -> None:
    auto()
    deny(IO_URING_SETUP, errno.EPERM)
    trio_uring.install()
    for _ in range(3):
        assert trio.run(is_enabled)
    assert expect_log("trio_uring waits by readiness") == 1
    trio_uring.install("uring")
    for _ in range(2):
        with pytest.raises(trio_uring.RingUnavailableError, match="EPERM"):
            trio.run(is_enabled)
    # A run that asks for something else gets that.
    assert trio_uring.run(is_enabled, backend="readiness")
    assert trio.run(is_enabled, instruments=[trio_uring.Enable("readiness")])
    assert not trio_uring.run(is_enabled, backend="off")
    trio_uring.uninstall()
    assert not trio.run(is_enabled)


@pytest.mark.skipif(
    importlib.util.find_spec("trio_uring._uring") is None,
    reason="without the extension that is the reason",
)
@in_child()
def test_uring_that_the_environment_asks_for_is_refused_before_the_run() -> None:
    """In the run it would be an OSError of an operation, as of a peer that does not answer."""
    auto()
    deny(IO_URING_SETUP, errno.EPERM)
    os.environ[_backend.VARIABLE] = "uring"
    begun: list[str] = []

    async def main() -> None:
        begun.append("run")

    async def enabling() -> None:
        trio_uring.enable()

    def refused(*args: Any, **kwargs: Any) -> None:
        with pytest.raises(trio_uring.RingUnavailableError, match="asked for by the environment"):
            trio.run(*args, **kwargs)

    with pytest.raises(trio_uring.RingUnavailableError, match="asked for by the environment"):
        trio_uring.run(main)
    refused(enabling)
    trio_uring.install()
    refused(main)
    assert not begun
    # A run that asks for something else gets that, also from those who ask for nothing.
    for ask in ("readiness", "auto", "off"):
        trio_uring.run(enabling, backend=ask)
        assert trio_uring.run(backend, backend=ask) == (ask != "off", ask)
        assert trio.run(backend, instruments=[trio_uring.Enable(ask)]) == (ask != "off", ask)
    assert expect_log("trio_uring waits by readiness") == 1  # of "auto"


@pytest.mark.uring_only("a run that has its ring")
def test_a_run_that_works_needs_no_second_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for another one may be short."""

    async def main() -> None:
        assert await is_enabled()
        monkeypatch.setattr(_backend, "UringRing", no_ring)
        trio_uring.enable()
        trio_uring.enable("uring")

    trio_uring.run(main, backend="uring")
    monkeypatch.undo()
    monkeypatch.setenv(_backend.VARIABLE, "uring")
    trio_uring.run(main)


@in_child()
def test_a_forked_child_inherits_it() -> None:
    trio_uring.install()
    pid = os.fork()
    if not pid:
        os._exit(0 if trio.run(is_enabled) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
