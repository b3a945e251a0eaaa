"""send_file: sendfile's semantics, on sockets and pipes, from the page cache and from the disk.

Rules of this file: files are regular files on a disk. `cold` drops a file from the page cache, so
that it has to be read. A kind with "loop" in its name is a stream whose driver believes that it has
no pumps.
"""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.relay import Plain, pumps_only
from support.streams import clog, count_of, drain, pattern, stream_and_peer, unix_sockets

import trio_uring
from trio_uring._driver.operation import TaskOperation
from trio_uring._driver.run import current_driver
from trio_uring._ring.op import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = ["socket", "pipe", "socket, loop", "pipe, loop"]
KINDS = [*OURS, "trio"]
SIZE = 1_500_000
DATA = pattern(SIZE)


@pytest.fixture
def path(on_disk: Path) -> Path:
    found = on_disk / "file"
    found.write_bytes(DATA)
    return found


def cold(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def test_a_socket_may_receive_while_the_file_is_read(path: Path) -> None:
    stream, peer = stream_and_peer()
    sending, fd = stream._sending, stream.socket.fileno()
    operation = TaskOperation(current_driver().engine, Opcode.READ, fd)
    sending.operations["the file's"] = operation
    operation.task = trio.lowlevel.current_task()  # as while the disk is waited for
    peer.send(b"x")
    assert await stream.socket.recv(1) == b"x"
    operation.task = None
    await stream.aclose()
    peer.close()


@pytest.fixture(params=["direct", "through a buffer"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """SIGPIPE at its default is one of the reasons not to use sendfile(2): it would end the
    process."""
    before = signal.getsignal(signal.SIGPIPE)
    if request.param != "direct":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    yield request.param
    signal.signal(signal.SIGPIPE, before)


def ends(kind: str) -> tuple[Any, Any]:
    """(stream, the other end)"""
    if "loop" in kind:
        engine: Any = current_driver().engine
        engine.pumps = False
    if "pipe" in kind:
        read, write = os.pipe()
        stream: Any = trio_uring.SendStream(write)
        peer: Any = Plain(read)
    elif kind == "trio":
        left, peer = unix_sockets()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(left))
    else:
        stream, peer = stream_and_peer()
    peer.setblocking(False)
    return stream, peer


async def send_and_collect(
    stream: Any, peer: Any, *arguments: Any, **named: Any
) -> tuple[int, bytes]:
    got: list[bytes] = []
    done = False

    async def collect() -> None:
        while True:
            finished = done
            try:
                got.append(peer.recv(2**20))
            except BlockingIOError:
                if finished:
                    return
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        sent = await trio_uring.send_file(stream, *arguments, **named)
        done = True
    return sent, b"".join(got)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", ["hot", "cold"])
@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, DATA),
        (0, 10, DATA[:10]),
        (777, 600_000, DATA[777:600_777]),
        (SIZE - 5, None, DATA[-5:]),
        (SIZE - 5, 100, DATA[-5:]),
        (SIZE, None, b""),
        (SIZE + 10, 5, b""),
        (5, 0, b""),
    ],
)
async def test_any_part_of_a_file(path, way, kind, temperature, offset, count, expected):
    stream, peer = ends(kind)
    if temperature == "cold":
        cold(path)
    with path.open("rb") as file:
        file.seek(3)
        sent, got = await send_and_collect(stream, peer, file, offset, count)
        assert (sent, got) == (len(expected), expected)
        assert file.tell() == (offset + sent if sent else 3)
        if kind != "trio":
            assert stream.bytes_sent == sent
    await stream.aclose()
    peer.close()


@pumps_only
async def test_a_hot_file_is_not_copied_and_a_cold_one_is_read_in_the_ring(path):
    stream, peer = ends("socket")
    with path.open("rb") as file:
        await send_and_collect(stream, peer, file)
        assert count_of("READ").submitted == count_of("SEND").submitted == 0
        assert trio_uring.current_statistics().bytes_sent == SIZE
        for hot in (0, 399_999, SIZE - 1):  # one end of what is asked for, the other, neither
            before = count_of("READ").submitted
            for _ in range(20):  # the kernel does not forget a file that it is busy with
                cold(path)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
                os.pread(file.fileno(), 1, hot)
                assert await send_and_collect(stream, peer, file, 0, 400_000) == (
                    400_000,
                    DATA[:400_000],
                )
                if count_of("READ").submitted > before:
                    break
            assert count_of("READ").submitted > before
    await stream.aclose()
    peer.close()


async def test_a_file_system_that_cannot_tell_what_is_in_memory(path, monkeypatch):
    def refuses(*_: object) -> int:
        raise OSError(95, "not supported")

    stream, peer = ends("socket")
    monkeypatch.setattr(os, "preadv", refuses)
    with path.open("rb") as file:
        assert await send_and_collect(stream, peer, file) == (SIZE, DATA)
    assert bool(count_of("READ").submitted) == current_driver().engine.pumps
    await stream.aclose()
    peer.close()


async def test_a_descriptor_keeps_its_position_and_the_caller_may_close_it(path):
    stream, peer = ends("socket")
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 7, os.SEEK_SET)
    assert (await send_and_collect(stream, peer, fd, 0, 100))[0] == 100
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    taken = clog(stream.socket.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_uring.send_file, stream, fd)
        await trio.testing.wait_all_tasks_blocked()
        os.close(fd)
        other = os.open(os.devnull, os.O_RDONLY)  # most likely under the same number
        got = b""
        while len(got) < taken + SIZE:
            got += drain(peer)
            await trio.lowlevel.checkpoint()
    assert got[taken:] == DATA
    os.close(other)
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_is_truncated_while_it_is_sent_is_only_shorter(path, way, kind):
    stream, peer = ends(kind)
    results = []
    with path.open("rb") as file:

        async def send() -> None:
            results.append(await trio_uring.send_file(stream, file))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            os.truncate(path, 1000)
            got = b""
            while not results:
                try:
                    got += peer.recv(2**20)
                except BlockingIOError:
                    await trio.lowlevel.checkpoint()
        try:
            while part := peer.recv(2**20):
                got += part
        except BlockingIOError:
            pass
        assert results == [len(got)]
        assert len(got) < SIZE
        assert file.tell() == len(got)
        # sendfile gives pages, which the truncation may have cleared, behind it.
        assert got[:1000] == DATA[:1000]
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_it_says_how_far_it_came(path, way, kind):
    stream, peer = ends(kind)
    told: list[int] = []
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio_uring.send_file(stream, file, progress=told.append))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        sent = file.tell()
        assert 0 < sent < SIZE
        assert told[-1] == sent
        if kind != "trio":
            assert stream.bytes_sent == sent
        rest, got = await send_and_collect(stream, peer, file, sent)
        assert sent + rest == SIZE
        assert got == DATA
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", OURS)
async def test_cancelled_before_it_sends_nothing(path, kind):
    """And says so: `bytes_sent` is not that of the send before."""
    stream, peer = ends(kind)
    await stream.send_all(b"before")
    peer.recv(6)
    with path.open("rb") as file, trio.CancelScope() as scope:
        scope.cancel()
        await trio_uring.send_file(stream, file)
    assert scope.cancelled_caught
    assert stream.bytes_sent == 0
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    await stream.send_all(b"x")
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_short_file_is_one_checkpoint(path, kind):
    stream, peer = ends(kind)
    with path.open("rb") as file:
        with trio.testing.assert_checkpoints():
            assert await trio_uring.send_file(stream, file, 0, 10) == 10
        with trio.testing.assert_checkpoints():
            assert await trio_uring.send_file(stream, file, 0, 0) == 0
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", ["socket", "socket, loop"])
async def test_the_stream_is_busy_meanwhile_and_free_afterwards(path, kind):
    stream, peer = ends(kind)
    clog(stream.socket.fileno())
    with path.open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_file, stream, file)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.send_all(b"x")
            with pytest.raises(trio.BusyResourceError):
                await trio_uring.send_file(stream, file)
            assert stream.bytes_sent == 0  # of the send that is under way
            nursery.cancel_scope.cancel()
        drain(peer)
        await stream.send_all(b"free")
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", OURS)
async def test_the_stream_is_closed_or_breaks_meanwhile(path, way, kind):
    for closes, error in ((True, trio.ClosedResourceError), (False, trio.BrokenResourceError)):
        stream, peer = ends(kind)
        with path.open("rb") as file:
            async with trio.open_nursery() as nursery:

                async def send(stream=stream, file=file, error=error) -> None:
                    with pytest.raises(
                        error, match="sink" if current_driver().engine.pumps else None
                    ):
                        await trio_uring.send_file(stream, file)

                if way != "direct" and not closes and "pipe" in kind:
                    # WRITE on a pipe has no MSG_NOSIGNAL either.
                    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked()
                if closes:
                    await stream.aclose()
                else:
                    peer.close()
        await stream.aclose()
        peer.close()


async def test_what_is_not_a_file(path):
    stream, peer = ends("socket")
    read, write = os.pipe()
    with path.open("rb") as file, path.open() as text:
        for wrong, error in (
            (io.BytesIO(b"memory"), TypeError),
            ("name", TypeError),
            (text, ValueError),
            (read, ValueError),
        ):
            with pytest.raises(error):
                await trio_uring.send_file(stream, wrong)
        for offset, count in ((-1, None), (0, -1)):
            with pytest.raises(ValueError, match=">= 0"):
                await trio_uring.send_file(stream, file, offset, count)
        with pytest.raises(TypeError):
            await trio_uring.send_file(stream, file, 0.5)
    unreadable = os.open(path, os.O_WRONLY)
    with pytest.raises(OSError, match="descriptor"):
        await trio_uring.send_file(stream, unreadable)
    for fd in (read, write, unreadable):
        os.close(fd)
    await stream.send_all(b"free")
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", ["socket", "socket, loop"])
async def test_a_file_in_proc_has_no_size(kind):
    stream, peer = ends(kind)
    with await trio.to_thread.run_sync(Path("/proc/self/mounts").open, "rb") as file:
        expected = file.read()
        assert await send_and_collect(stream, peer, file) == (len(expected), expected)
    await stream.aclose()
    peer.close()
