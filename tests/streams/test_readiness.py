"""By readiness: descriptors that others share, that are closed behind a stream's back, or that
cannot be waited for.

Rules of this file: every run asks for that backend, whatever the tests run on. Nothing sleeps;
needless wake-ups are found by counting trio's passes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from support.child import Passes
from support.streams import clog, drain, pattern, unix_sockets

import trio_uring
from trio_uring._driver import readiness as _readiness
from trio_uring._driver.run import request_backend


@pytest.fixture(autouse=True)
def readiness(monkeypatch) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", "readiness")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Blocking, as a shared one is; the descriptors are the test's, and streams get duplicates."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


async def passes_of(act: Callable[[], Awaitable[Any]]) -> int:
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    await act()
    trio.lowlevel.remove_instrument(passes)
    return passes.count


async def test_it_is_the_backend() -> None:
    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right:
        await left.send_all(b"x")
        assert await right.receive_some() == b"x"
        assert trio_uring.backend_info().backend == "readiness"
        assert trio_uring.current_statistics().enters == 0
        with pytest.raises(RuntimeError, match="already"):
            request_backend("uring")


# -- who is woken


async def test_a_reader_is_not_woken_by_room_nor_a_writer_by_data() -> None:
    ours, theirs = unix_sockets()
    async with trio_uring.SocketStream(ours) as stream:
        clogged = clog(ours.fileno())
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await stream.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(stream.send_all, b"sent")
            await trio.testing.wait_all_tasks_blocked()

            async def data_for_one() -> None:
                theirs.send(b"x")
                await trio.testing.wait_all_tasks_blocked(0.01)

            assert await passes_of(data_for_one) <= 4
            assert got == [b"x"]
            assert len(drain(theirs)) == clogged
            await trio.testing.wait_all_tasks_blocked()
        assert drain(theirs) == b"sent"
    theirs.close()


async def test_a_duplicate_that_is_open_elsewhere_wakes_nobody() -> None:
    """The descriptor was closed, and its file is open under another number, where data comes that
    nobody here waits for."""
    ours, theirs = unix_sockets()
    kept = socket.socket(fileno=os.dup(ours.fileno()))
    stream = trio_uring.SocketStream(ours)
    with trio.move_on_after(0.01):
        await stream.receive_some()
    await stream.aclose()
    theirs.send(b"x")

    async def idle() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)

    assert await passes_of(idle) <= 3
    assert kept.recv(8) == b"x"
    kept.close()
    theirs.close()


# -- closed and reused descriptors


async def test_a_number_is_used_again() -> None:
    for number in range(3):
        ours, theirs = unix_sockets()
        fd = ours.detach()
        os.dup2(fd, 200)
        os.close(fd)
        async with trio_uring.SocketStream(socket.socket(fileno=200)) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, stream.receive_some, bytes([number]))
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(bytes([number]))
        theirs.close()


async def expect(receive: Callable[[], Awaitable[bytes]], data: bytes) -> None:
    assert await receive() == data


@pytest.mark.parametrize("what", ["receive", "send", "wait"])
async def test_closed_by_another_task(what: str) -> None:
    ours, theirs = unix_sockets()
    stream = trio_uring.SocketStream(ours)
    clog(ours.fileno())
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "receive": stream.receive_some,
        "send": lambda: stream.send_all(b"x"),
        "wait": stream.wait_send_all_might_not_block,
    }

    async def closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await calls[what]()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
    theirs.close()


class Refusing:
    """An epoll instance that takes no further descriptor."""

    def __init__(self, epoll: Any) -> None:
        self.poll = epoll.poll

    def fileno(self) -> int:
        return -1  # the accelerator asks for it, and gets EBADF

    def modify(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, "as fs.epoll.max_user_watches has it")

    register = modify


async def test_an_errno_of_the_wait_is_the_streams(monkeypatch) -> None:
    ours, theirs = unix_sockets()
    manager: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
    async with trio_uring.SocketStream(ours) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(manager, "_epoll", Refusing(manager._epoll))
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
    theirs.close()


# -- pipes, which stay as they are


def pipe_streams(pipe: tuple[int, int]) -> tuple[trio_uring.ReceiveStream, trio_uring.SendStream]:
    reading, writing = map(os.dup, pipe)
    return trio_uring.ReceiveStream(reading), trio_uring.SendStream(writing)


def without_nowait(monkeypatch) -> None:
    """As on a system that has no RWF_NOWAIT."""
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)  # PyPy has none


@pytest.mark.parametrize("nowait", [True, False])
@pytest.mark.parametrize("many", [True, False])
async def test_a_pipe_never_blocks_the_thread_and_stays_blocking(
    pipe, monkeypatch, many: bool, nowait: bool
) -> None:
    if not nowait:
        without_nowait(monkeypatch)
    reader, writer = pipe_streams(pipe)
    data = pattern(2**20)  # sixteen times what it holds
    async with reader, writer:
        with trio.move_on_after(0.01) as scope:
            await reader.receive_some()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                writer.send_all, [data[:5], b"", data[5:70_000], data[70_000:]] if many else data
            )
            await trio.testing.wait_all_tasks_blocked()
            assert await reader.receive_exactly(len(data)) == data
    assert os.get_blocking(pipe[0])
    assert os.get_blocking(pipe[1])


@pytest.mark.parametrize("nowait", [True, False])
@pytest.mark.parametrize("many", [True, False])
async def test_a_full_pipe_is_waited_for_and_its_bytes_are_counted(
    pipe, monkeypatch, many: bool, nowait: bool
) -> None:
    if not nowait:
        without_nowait(monkeypatch)
    reader, writer = pipe_streams(pipe)
    clogged = clog(pipe[1])
    async with reader, writer:
        with trio.move_on_after(0.01) as scope:
            await writer.send_all([b"xx", bytes(8192)] if many else bytes(8194))
        assert (scope.cancelled_caught, writer.bytes_sent) == (True, 0)
        assert len(os.read(pipe[0], 4096)) == 4096  # a page is free
        with trio.move_on_after(0.01) as scope:
            await writer.send_all([b"xx", bytes(8192)] if many else b"xx" + bytes(8192))
        assert scope.cancelled_caught
        assert 0 < writer.bytes_sent <= 4096
        got = await reader.receive_exactly(clogged - 4096 + writer.bytes_sent)
        assert got[clogged - 4096 :] == (b"xx" + bytes(8192))[: writer.bytes_sent]
        with trio.move_on_after(0.01) as scope:
            await reader.receive_some()
        assert scope.cancelled_caught, "not a byte more"


@pytest.mark.parametrize("nowait", [True, False])
async def test_the_wrong_end_of_a_pipe_is_an_error(pipe, monkeypatch, nowait: bool) -> None:
    """A poll never says that it is ready."""
    if not nowait:
        without_nowait(monkeypatch)
    reading, writing = map(os.dup, pipe)
    async with (
        trio_uring.SendStream(reading) as writer,
        trio_uring.ReceiveStream(writing) as reader,
    ):
        for call in (reader.receive_some, lambda: writer.send_all([b"x", b"y"])):
            with pytest.raises(trio.ClosedResourceError):
                await call()


async def test_a_read_takes_no_more_than_it_is_asked_for(pipe) -> None:
    reader, writer = pipe_streams(pipe)
    async with reader, writer:
        await writer.send_all(b"abcdef")
        assert await reader.receive_some(2) == b"ab"
        assert await reader.receive_into(into := bytearray(3)) == 3
        assert into == b"cde"
        assert os.read(pipe[0], 100) == b"f"


async def test_a_token_is_left_to_whoever_reads_first(pipe) -> None:
    """Another process's read wins over a task that was woken for nothing, and the task goes on
    waiting."""
    reader, writer = pipe_streams(pipe)
    async with reader, writer:
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await reader.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            os.write(pipe[1], b"1")
            assert os.read(pipe[0], 1) == b"1"
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert got == []
            os.write(pipe[1], b"2")
        assert got == [b"2"]


async def test_the_end_of_a_pipe(pipe) -> None:
    reading, writing = os.pipe()
    async with trio_uring.ReceiveStream(reading) as reader:
        os.close(writing)
        assert await reader.receive_some() == b""
    reading, writing = os.pipe()
    async with trio_uring.SendStream(writing) as writer:
        os.close(reading)
        with pytest.raises(trio.BrokenResourceError):
            await writer.send_all(b"x")


# -- what cannot be waited for, or knows no RWF_NOWAIT


async def test_a_terminal() -> None:
    master, slave = os.openpty()
    async with (
        trio_uring.SendStream(master) as keyboard,
        trio_uring.ReceiveStream(slave) as program,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, program.receive_some, b"line\n")
            await trio.testing.wait_all_tasks_blocked()
            await keyboard.send_all(b"line\n")


async def test_a_device_that_is_always_ready() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    async with (
        trio_uring.SendStream(os.dup(null)) as writer,
        trio_uring.ReceiveStream(null) as reader,
    ):
        await writer.send_all([b"dropped", bytes(2**20)])
        assert writer.bytes_sent == 7 + 2**20
        assert await reader.receive_some() == b""


# -- lists, where no call takes one


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ([3], 3),
        ([3, 0, 4], 7),
        ([16, 10**7], _readiness.JOIN_MAX),  # a header and its body
        ([5, 10, 10**7, 20], _readiness.JOIN_MAX),
        ([_readiness.JOIN_MAX, 10**7], _readiness.JOIN_MAX),
        ([_readiness.JOIN_MAX - 1, 1, 1], _readiness.JOIN_MAX),
        ([10**7, 16], _readiness.COPY_MAX),
        ([0, 0, 0], 0),
    ],
)
def test_no_more_of_a_list_is_copied_than_one_send_may_take(sizes: list[int], length: int) -> None:
    buffers = [memoryview(pattern(size)) for size in sizes]
    joined = _readiness._joined(buffers)
    assert len(joined) == length
    assert bytes(joined) == b"".join(buffers)[:length]
