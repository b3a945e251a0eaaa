"""send_file by readiness: sendfile(2) in the task, and reads in a worker thread.

Rules of this file: the driver of each test believes that it has no pumps. What works the same in
every way is in test_send_file.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.by_hand import park
from support.streams import clog, count_of, drain, operations_on, pattern, until, waits_are_ours

import trio_uring
from trio_uring._relay.send_file import DIRECT_SIZE

from .test_send_file import ends, send_and_collect

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 3 * DIRECT_SIZE + 12345
DATA = pattern(SIZE)
real_sendfile, real_pread = os.sendfile, os.pread


@pytest.fixture
def path(on_disk: Path) -> Path:
    found = on_disk / "file"
    found.write_bytes(DATA)
    return found


class Calls:
    """The bytes that went by sendfile(2), and those that a worker thread has read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = self.read = 0
        self.before: Callable[[], object] = lambda: None
        monkeypatch.setattr(os, "sendfile", self._sendfile)
        monkeypatch.setattr(os, "pread", self._pread)

    def _sendfile(self, *arguments: Any) -> int:
        self.before()
        count = real_sendfile(*arguments)
        self.sent += count
        return count

    def _pread(self, *arguments: Any) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        chunk = real_pread(*arguments)
        self.read += len(chunk)
        return chunk


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


async def test_a_hot_file_is_not_copied(path: Path, calls: Calls) -> None:
    stream, peer = ends("socket, loop")
    with path.open("rb") as file:
        assert await send_and_collect(stream, peer, file) == (SIZE, DATA)
    assert (calls.sent, calls.read) == (SIZE, 0)
    assert count_of("READ").submitted == count_of("SEND").submitted == 0
    assert trio_uring.current_statistics().bytes_sent == SIZE
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("where", [0, 200_000, 399_999, 500_000])
async def test_what_is_not_in_memory_is_read_in_a_thread(
    path: Path, calls: Calls, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first byte of what is asked for, one that is not looked at, the last, one behind it."""
    real_preadv = os.preadv

    def preadv(fd: int, buffers: list[Any], offset: int, flags: int) -> int:
        """As if one byte were on the disk."""
        room = where - offset if where >= offset else len(buffers[0])
        if not room:
            raise BlockingIOError(errno.EAGAIN, "on the disk")
        return real_preadv(fd, [memoryview(buffers[0])[:room]], offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    stream, peer = ends("socket, loop")
    with path.open("rb") as file:
        expected = 400_000, DATA[:400_000]
        assert await send_and_collect(stream, peer, file, 0, 400_000) == expected
    assert bool(calls.read) == (where in (0, 399_999))
    assert (calls.sent == 400_000) == (where in (200_000, 500_000))
    await stream.aclose()
    peer.close()


async def test_a_pipe_is_sent_what_was_read(path: Path, calls: Calls) -> None:
    stream, peer = ends("pipe, loop")
    with path.open("rb") as file:
        assert await send_and_collect(stream, peer, file) == (SIZE, DATA)
    assert calls.sent == 0
    await stream.aclose()
    peer.close()


async def test_a_system_that_cannot_tell_what_is_in_memory(
    path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT")
    stream, peer = ends("socket, loop")
    with path.open("rb") as file:
        assert await send_and_collect(stream, peer, file) == (SIZE, DATA)
    assert (calls.sent, calls.read) == (0, SIZE)
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_where_sendfile_cannot_do_it(path: Path, calls: Calls, code: int) -> None:
    """Not at first, and not any more: nothing is lost or doubled, and it is asked once."""
    asked = 0

    def refuse() -> None:
        nonlocal asked
        asked += 1
        if calls.sent >= allowed:
            raise OSError(code, os.strerror(code))

    calls.before = refuse
    for allowed in (0, 1):
        stream, peer = ends("socket, loop")
        asked = calls.sent = 0
        told: list[int] = []
        with path.open("rb") as file:
            got = await send_and_collect(stream, peer, file, progress=told.append)
            assert got == (SIZE, DATA)
            assert file.tell() == stream.bytes_sent == told[-1] == SIZE
        assert asked == 1 + allowed
        assert told == sorted(set(told))
        await stream.aclose()
        peer.close()


async def test_other_tasks_run_between_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the socket takes whatever it is given."""
    stream, peer = ends("socket, loop")
    order: list[str] = []

    def takes_all(sink: int, file: int, offset: int, size: int) -> int:
        order.append("chunk")
        return min(size, SIZE - offset)

    async def other() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            order.append("other")

    monkeypatch.setattr(os, "sendfile", takes_all)
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            assert await trio_uring.send_file(stream, file) == SIZE
            nursery.cancel_scope.cancel()
    assert order.count("chunk") == 4
    assert "chunk" * 3 not in "".join(order)  # trio decides who comes first in a pass
    await stream.aclose()
    peer.close()


async def test_progress_that_raises(path: Path) -> None:
    stream, peer = ends("socket, loop")

    def stop(total: int) -> None:
        raise ZeroDivisionError(total)

    with path.open("rb") as file:
        with pytest.raises(ZeroDivisionError) as caught:
            await trio_uring.send_file(stream, file, progress=stop)
        assert caught.value.args == (file.tell(),) == (stream.bytes_sent,)
    assert drain(peer) == DATA[: stream.bytes_sent] != b""
    await stream.send_all(b"free")
    await stream.aclose()
    peer.close()


@pytest.fixture
def slow_read(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Reads begin and wait: (one has begun, it may end)."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(*arguments: Any) -> bytes:
        begun.set()
        assert go_on.wait(20)
        return real_pread(*arguments)

    monkeypatch.delattr(os, "RWF_NOWAIT")
    monkeypatch.setattr(os, "pread", wait)
    return begun, go_on


async def test_the_stream_is_busy_while_the_disk_is(path: Path, slow_read: Any) -> None:
    begun, go_on = slow_read
    stream, peer = ends("socket, loop")
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_file, stream, file, 0, 10)
            await until(begun.is_set, "a thread reads")
            with pytest.raises(trio.BusyResourceError):
                await stream.send_all(b"in between")
            go_on.set()
    assert drain(peer) == DATA[:10]
    await stream.aclose()
    peer.close()


async def test_a_stream_that_is_closed_while_the_disk_is_busy(path: Path, slow_read: Any) -> None:
    """Its number may be another's by the time the bytes are there."""
    begun, go_on = slow_read
    stream, peer = ends("socket, loop")
    fd = stream.socket.fileno()
    read, write = os.pipe()
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await trio_uring.send_file(stream, file)

            nursery.start_soon(send)
            await until(begun.is_set, "a thread reads")
            await stream.aclose()
            os.dup2(write, fd)
            go_on.set()
        assert file.tell() == 0
    os.set_blocking(read, False)
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    for number in (read, write, fd):
        os.close(number)
    peer.close()


async def test_a_cancel_while_the_disk_is_busy_waits_for_the_read(
    path: Path, slow_read: Any
) -> None:
    """What was read then is not sent: nothing says that it was wanted."""
    begun, go_on = slow_read
    stream, peer = ends("socket, loop")
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_file, stream, file)
            await until(begun.is_set, "a thread reads")
            nursery.cancel_scope.cancel()
            go_on.set()
        assert file.tell() == stream.bytes_sent == 0
    assert drain(peer) == b""
    await stream.aclose()
    peer.close()


@waits_are_ours
@pytest.mark.parametrize("kind", ["socket, loop", "pipe, loop"])
async def test_a_destroyed_call_frees_the_stream(path: Path, kind: str) -> None:
    stream, peer = ends(kind)
    clogged = clog(stream._lease.fd)
    with path.open("rb") as file:
        coro = trio_uring.send_file(stream, file)
        await park(coro)
        coro.close()
        assert file.tell() == 0
    await until(lambda: not operations_on(stream._lease.fd), "nothing is left")
    got = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"after")
        while len(got) < clogged + 5:
            try:
                got += peer.recv(2**20)
            except BlockingIOError:
                await trio.lowlevel.checkpoint()
    assert got == b"c" * clogged + b"after"
    await stream.aclose()
    peer.close()
