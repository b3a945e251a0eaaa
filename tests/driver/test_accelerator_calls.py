"""Calls of streams behave like coroutines, and what they borrow stays as it is.

Rules of this file: each test runs over the accelerator and without it, and asserts the same.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.child import driver
from support.streams import unix_streams
from trio._core._io_epoll import EpollWaiters
from trio._core._traps import WaitTaskRescheduled

import trio_uring
from trio_uring._descriptors import provided
from trio_uring._driver.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

SIZE = 300_000  # bytes: more than a socket with a small buffer takes at once


async def used_streams() -> tuple[trio_uring.SocketStream, trio_uring.SocketStream]:
    """Streams whose directions have operations, which a call in C needs."""
    left, right = unix_streams()
    for data in (b"x", [b"x", b"y"]):
        await left.send_all(data)
        await right.receive_some()
    await left.send_all(b"x")
    await right.receive_into(bytearray(1))
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return left, right


async def until_sending(stream: trio_uring.SocketStream) -> None:
    while not stream._sending.held:
        await trio.lowlevel.checkpoint()


async def receive_all(stream: trio_uring.SocketStream, count: int) -> bytes:
    return await stream.receive_exactly(count, timeout=5)


# -- what a call borrows


@pytest.mark.parametrize("change", ["clear", "replace"])
async def test_a_list_may_change_while_it_is_sent(change: str) -> None:
    left, right = await used_streams()
    data = [b"a" * (SIZE // 3), b"b" * (SIZE // 3), b"c" * (SIZE // 3)]
    expected = b"".join(data)
    got: list[bytes] = []

    async def change_it() -> None:
        await until_sending(left)
        if change == "clear":
            data.clear()
        else:
            data[1] = b"Z" * (SIZE // 3)
        got.append(await receive_all(right, SIZE))

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(change_it)
        nursery.start_soon(left.send_all, data)
    assert got == [expected]


async def test_a_buffer_cannot_be_resized_before_the_call_returns() -> None:
    left, right = await used_streams()
    data, tries = bytearray(b"a" * SIZE), 0

    async def resize() -> None:
        nonlocal tries
        await until_sending(left)
        while left._sending.held and tries < 20:
            with pytest.raises(BufferError):
                del data[100:]
            tries += 1
            await trio.lowlevel.checkpoint()
        assert await receive_all(right, SIZE) == b"a" * SIZE

    async with left, right:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resize)
            nursery.start_soon(left.send_all, data)
        data.append(0)
    assert tries


@pytest.mark.parametrize("in_kernel", [True, False])
async def test_a_cancelled_receive_into_lets_go_of_the_buffer(in_kernel: bool) -> None:
    left, right = await used_streams()
    buffer = bytearray(10)
    async with left, right:
        with trio.CancelScope() as scope:
            if in_kernel:
                scope.deadline = trio.current_time() + 0.05
            else:
                scope.cancel()
            await right.receive_into(buffer)
        assert scope.cancelled_caught
        buffer.append(0)


async def cancelled(call: Callable[[], Awaitable[object]]) -> BaseException:
    """Cancels a call after it has gone on for a while, and keeps its frames."""
    kept: list[BaseException] = []
    with trio.move_on_after(0.05):
        try:
            await call()
        except BaseException as exc:
            kept.append(exc)
            raise
    return kept[0]


@pytest.mark.parametrize("many", [False, True])
async def test_a_traceback_keeps_no_buffer_exported(many: bool) -> None:
    left, right = await used_streams()
    data = bytearray(SIZE)
    async with left, right:
        exc = await cancelled(lambda: left.send_all([data, data] if many else data))
        assert 0 < left.bytes_sent < SIZE
        data.append(0)
        buffer = bytearray(10)
        del exc
        await right.receive_exactly(left.bytes_sent)
        exc = await cancelled(lambda: right.receive_into(buffer))
        buffer.append(0)
        del exc


async def test_a_list_of_much_is_let_go() -> None:
    left, right = await used_streams()
    data = [bytearray(3 << 20), bytearray(3 << 20)]
    async with left, right:
        with trio.move_on_after(0.05):
            await left.send_all(data)
        for buffer in data:
            buffer.append(0)


async def test_a_call_that_is_over_lets_go_of_everything() -> None:
    left, right = await used_streams()
    buffer = bytearray(b"data")
    async with left, right:
        sending = left.send_all(buffer)
        await sending
        buffer.append(0)
        receiving = right.receive_into(buffer)
        await receiving
        buffer.append(0)
        del sending, receiving


async def test_a_call_that_is_closed_lets_go_of_its_buffer() -> None:
    left, right = await used_streams()
    data = bytearray(b"data")
    async with left, right:
        call: Any = left.send_all(data)
        call.send(None)
        call.close()
        data.append(0)
        await trio.lowlevel.checkpoint()


class Garbage:
    me: Any


async def test_a_collection_empties_the_list_while_it_is_looked_at() -> None:
    left, right = await used_streams()
    threshold = gc.get_threshold()
    async with left, right:
        for count in range(60):
            data = [bytearray(50) for _ in range(50)]
            garbage = Garbage()
            garbage.me = garbage
            weakref.finalize(garbage, data.clear)
            del garbage
            call = left.send_all(data)
            gc.set_threshold(1 + count, 1, 1)
            try:
                await call
            finally:
                gc.set_threshold(*threshold)
            with trio.move_on_after(0.01):
                await right.receive_some()


# -- calls as coroutines


async def test_a_second_task_cannot_await_a_call() -> None:
    left, right = await used_streams()
    call, got = right.receive_some(), []

    async def receive() -> None:
        got.append(await call)

    async with left, right, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="is being awaited already"):
            await call
        await left.send_all(b"data")
    assert got == [b"data"]


async def test_a_call_that_is_running_refuses_to_be_run() -> None:
    left, right = await used_streams()
    real, errors = right._receiving.fileno, []

    def fileno() -> int:
        for name, arguments in (("send", [None]), ("throw", [KeyError]), ("close", [])):
            try:
                getattr(call, name)(*arguments)
            except ValueError as exc:
                errors.append(str(exc))
        return real()

    async with left, right:
        await left.send_all(b"data")
        call = right.receive_some()
        right._receiving.fileno = fileno
        assert await call == b"data"
        right._receiving.fileno = real
    assert errors
    assert set(errors) == {"coroutine already executing"}


async def test_a_call_begins_with_none() -> None:
    left, right = await used_streams()
    async with left, right:
        call: Any = right.receive_some()
        with pytest.raises(TypeError, match="non-None value to a just-started coroutine"):
            call.send(1)
        await left.send_all(b"data")
        assert await call == b"data"
        with pytest.raises(TypeError, match="cannot create"):
            type(call)()


# -- KeyboardInterrupt, which trio raises in the main task


@pytest.fixture
def interrupts() -> Iterator[None]:
    """trio's own handler is installed only in the place of Python's."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_loses_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the accelerator calls Python from the frame of an unprotected caller."""
    real = provided.use

    def use(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        real(*arguments)

    async def main() -> bytes:
        left, right = unix_streams()
        async with left, right:
            await left.send_all(b"x")
            await right.receive_some()
            await left.send_all(b"y" * 4096)
            with monkeypatch.context() as patch:
                patch.setattr(provided, "use", use)
                received = await right.receive_some()
            with pytest.raises(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()
        return received

    if trio_uring.backend_info().backend != "uring":
        pytest.skip("there are no provided buffers")
    assert len(trio.run(main)) == 4096


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_does_not_stop_a_call_from_being_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Engine.abandon

    def abandon(engine: Engine, op: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        real(engine, op)

    async def main() -> None:
        left, right = await used_streams()
        async with left, right:
            call: Any = right.receive_some()
            call.send(None)
            with monkeypatch.context() as patch:
                patch.setattr(Engine, "abandon", abandon)
                call.close()
            assert not driver().queue
            with pytest.raises(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()
            await left.send_all(b"data")
            assert await right.receive_some() == b"data"

    if trio_uring.backend_info().backend != "uring":
        pytest.skip("there is no queue")
    trio.run(main)


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("made", [EpollWaiters, WaitTaskRescheduled])
def test_an_interrupt_of_a_wait_by_readiness_is_not_lost(made: type) -> None:
    """A wait makes objects of trio's, in Python, in the frame of an unprotected caller."""
    initialiser: Any = vars(made)["__init__"]
    interrupted = False

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal interrupted
        if event == "call" and frame.f_code is initialiser.__code__ and not interrupted:
            interrupted = True
            signal.raise_signal(signal.SIGINT)

    async def main() -> bytes:
        left, right = await used_streams()
        async with left, right:
            sys.setprofile(profile)
            with pytest.raises(KeyboardInterrupt), trio.fail_after(5):
                await right.receive_some()
            sys.setprofile(None)
            await left.send_all(b"data")
            return await right.receive_some()

    try:
        assert trio_uring.run(main, backend="readiness") == b"data"
    finally:
        sys.setprofile(None)
    assert interrupted
