"""Switched off: an enabled run is trio's own in every respect, and classes of ours still work.

Rules of this file: what a stock run is, is asked of trio's own objects, not of ours.
"""

from __future__ import annotations

import abc
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from support.fallback import works
from trio._core._run import GLOBAL_RUN_CONTEXT, TheIOManager
from trio._socket import _SocketType

import trio_uring
from trio_uring._driver import backend as _backend
from trio_uring._driver import run as _driver

if TYPE_CHECKING:
    from collections.abc import Callable

STOCK_INIT = _SocketType.__init__


def assert_stock() -> None:
    assert _SocketType.__init__ is STOCK_INIT
    assert type(trio.SocketStream) is type(trio.SocketListener) is abc.ABCMeta
    assert type(GLOBAL_RUN_CONTEXT.runner.io_manager) is TheIOManager
    theirs = GLOBAL_RUN_CONTEXT.runner.instruments["_all"]
    assert {type(each) for each in theirs} <= {trio_uring.Enable}  # what the test has given it


async def stock_program() -> str:
    """Connects, accepts and exchanges with trio's names only."""
    assert_stock()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        client = await trio.open_tcp_stream("127.0.0.1", port)
        async with client, await listener.accept() as served:
            assert {type(client), type(served)} == {trio.SocketStream}
            assert {type(client.socket), type(listener.socket)} == {_SocketType}
            await client.send_all(b"x")
            assert await served.receive_some() == b"x"
    assert_stock()
    return "done"


async def by_name() -> str:
    """What is asked for by its own name works, by readiness."""
    assert await stock_program() == "done"
    await works()
    info = trio_uring.backend_info()
    assert (info.backend, info.requested) == ("readiness", "off")
    assert trio_uring.current_statistics().backend == "readiness"
    left, right = trio_uring.socket.socketpair()
    with left, right:
        await left.send(b"x")
        assert await right.recv(1) == b"x"
    return str(info.reason)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_backend.VARIABLE, raising=False)
    monkeypatch.delenv(_driver.VARIABLE, raising=False)


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_backend.VARIABLE, "off")


async def enables(backend: str | None = None) -> str:
    trio_uring.enable(backend)
    return await by_name()


def test_by_the_environment(off: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_uring")
    reason = f"off is asked for by the environment variable {_backend.VARIABLE}"
    assert trio_uring.run(stock_program) == "done"
    assert trio_uring.run(by_name) == reason
    assert trio.run(by_name, instruments=[trio_uring.Enable()]) == reason
    assert trio.run(enables) == reason
    assert trio_uring.backend_info().reason == reason
    assert not caplog.records  # it was asked for


def test_by_an_argument() -> None:
    reason = "off is asked for by this run's argument"
    assert trio_uring.run(by_name, backend="off") == reason
    assert trio.run(by_name, instruments=[trio_uring.Enable("off")]) == reason
    assert trio.run(enables, "off") == reason
    # What was asked for first holds for whoever asks for nothing in particular.
    assert trio_uring.run(enables, backend="off") == reason


@pytest.mark.parametrize("backend", ["off", "readiness"])
def test_the_run_keeps_no_instrument_of_ours(backend: str) -> None:
    async def instruments() -> dict[str, dict[object, None]]:
        return dict(GLOBAL_RUN_CONTEXT.runner.instruments)

    assert trio_uring.run(instruments, backend=backend) == trio.run(instruments)


def test_of_a_whole_process(off: None) -> None:
    trio_uring.install()
    try:
        assert trio.run(stock_program) == trio_uring.run(stock_program) == "done"
    finally:
        trio_uring.uninstall()


def test_nothing_is_opened(off: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a ring was opened")

    monkeypatch.setattr(_backend, "UringRing", opened)
    trio_uring.run(by_name)


def test_an_argument_goes_before_the_environment(off: None) -> None:
    async def main() -> None:
        left, right = trio.socket.socketpair()
        with left, right:
            assert isinstance(left, trio_uring.UringSocket)
            await left.send(b"x")
            assert await right.recv(1) == b"x"

    async def enables_itself() -> None:
        trio_uring.enable("readiness")
        await main()

    trio_uring.run(main, backend="readiness")
    trio_uring.run(enables_itself)
    trio_uring.run(enables_itself, backend="off")


def test_an_enabled_run_stays_one() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="enabled already: ask for off before"):
            trio_uring.enable("off")
        ours, theirs = socket.socketpair()
        with theirs:
            async with trio_uring.SocketStream(ours) as stream:
                await stream.send_all(b"x")

    trio_uring.run(main)


def test_not_after_io_uring_was_used() -> None:
    async def main() -> None:
        await works()
        if trio_uring.backend_info().backend == "uring":
            with pytest.raises(RuntimeError, match="already, on uring: ask for off before"):
                trio_uring.enable("off")
        else:
            trio_uring.enable("off")

    trio.run(main)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        (
            _backend.VARIABLE,
            "the environment variable TRIO_URING_BACKEND is 'iouring': a backend is one of "
            "'uring', 'readiness', 'auto', 'off'",
        ),
        (
            _driver.VARIABLE,
            "the driver is 'iouring' (TRIO_URING_DRIVER, or this run's argument): it is one of "
            "'auto', 'task'",
        ),
    ],
)
def test_a_wrong_variable_is_refused_before_the_run(
    variable: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "iouring")
    begun: list[str] = []

    async def main() -> None:
        begun.append("run")

    async def enabling() -> None:
        trio_uring.enable()
        begun.append("enable")

    for attempt in (
        lambda: trio_uring.run(main),
        lambda: trio.run(enabling),
        lambda: trio.run(main, instruments=[trio_uring.Enable()]),
    ):
        with pytest.raises(ValueError, match="one of") as caught:
            attempt()
        assert str(caught.value) == says
    assert not begun
    os.environ[variable] = ""
    trio_uring.run(main)
    assert begun == ["run"]


@pytest.mark.parametrize("ask", [trio_uring.backend_info, trio_uring.Enable])
def test_a_wrong_variable_is_one_error(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback does not begin with an exception of ours that means nothing to anybody."""

    async def main() -> None:
        with pytest.raises(ValueError, match="is 'iouring': a backend is one of") as caught:
            ask()
        assert caught.value.__context__ is None

    monkeypatch.setenv(_backend.VARIABLE, "iouring")
    trio.run(main)
