"""A program in a new interpreter where trio lacks a private name: python -c "... main(module,
name)".

Rules of this file: importing it imports neither trio nor trio_uring.
"""

from __future__ import annotations

import importlib
import os
import queue
import socket
import sys
import types
from typing import Any


class Hiding:
    """All that a thing has, but one name, which may be one of a thing in it."""

    def __init__(self, real: Any, name: str) -> None:
        self._real = real
        self._first, _, self._rest = name.partition(".")

    def __getattr__(self, name: str) -> Any:
        if name != self._first:
            return getattr(self._real, name)
        if not self._rest:
            raise AttributeError(name)
        return Hiding(getattr(self._real, name), self._rest)


class HidingModule(types.ModuleType):
    """The same, and a module."""

    def __init__(self, real: types.ModuleType, name: str) -> None:
        super().__init__(real.__name__)
        self.__dict__["_hiding"] = Hiding(real, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_hiding"], name)


def main(module: str, name: str) -> None:
    sys.modules[module] = HidingModule(importlib.import_module(module), name)
    from trio_uring import _trio

    [private] = [one for one in _trio.NAMES if not one.found]
    assert private.name == f"{module}.{name}"
    assert _trio.missing(private.lost) == [f"{module}.{name}"]

    import trio

    import trio_uring

    trio.run(use)
    trio.run(use)
    trio_uring.run(use)
    if private.lost == _trio.LOOP:
        trio.run(wait_by_a_task)
    elif private.lost == _trio.FORK:
        trio.run(fork)
    elif private.lost == _trio.INSTALL:
        installed()


async def use() -> None:
    import trio

    import trio_uring

    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right:
        for number in range(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.send_all, [bytes([number]), bytes(2**17)])
                assert await right.receive_exactly(1 + 2**17) == bytes([number]) + bytes(2**17)
        with trio.move_on_after(0.01) as scope:
            await left.receive_some()
        assert scope.cancelled_caught
        await trio.to_thread.run_sync(trio.from_thread.run_sync, lambda: None)


def guest_run(main: Any) -> Any:
    import trio

    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=todo.put,
        done_callback=todo.put,
        host_uses_signal_set_wakeup_fd=True,
    )
    while callable(step := todo.get()):
        step()
    return step.unwrap()


def installed() -> None:
    """Without the name, install() replaces the public ones."""
    import trio

    import trio_uring

    async def kind() -> bool:
        left, right = trio.socket.socketpair()
        with left, right:
            return isinstance(left, trio_uring.UringSocket)

    stock, stock_guest = trio.run, trio.lowlevel.start_guest_run
    for _ in range(2):
        trio_uring.install()
        trio_uring.install()
        assert trio.run(kind, instruments=[trio.abc.Instrument()])
        assert trio.run.__name__ == "run"
        assert guest_run(kind)
        assert not stock(kind)
        trio_uring.uninstall()
        assert (trio.run, trio.lowlevel.start_guest_run) == (stock, stock_guest)
        assert not trio.run(kind)


async def wait_by_a_task() -> None:
    import trio_uring
    from trio_uring._driver.run import current_driver

    await use()
    statistics = trio_uring.current_statistics()
    if statistics.backend == "uring":
        assert "DEFER_TASKRUN" not in statistics.setup_flags
        assert current_driver().engine.hooks is not None  # type: ignore[union-attr]


async def fork() -> None:
    """The child shares trio's epoll instance with its parent, as in any run of trio; it is not to
    stay."""
    await use()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0  # noqa: ASYNC222
    await use()
