"""The receives: how much they return and where, the end, and what an interrupted one keeps for the
next.

Rules: the peer is a plain socket or descriptor, whose sends are complete when they return, so that
it is known what a receive finds.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import (
    clog,
    closing,
    drain,
    passes,
    pattern,
    receive_all,
    stream_and_peer,
    tcp_sockets,
    unix_sockets,
    until,
    until_blocked,
)

import trio_uring
from trio_uring import IncompleteReadError, ReceiveStream, SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def takes_nothing(
    error: type[Exception] | tuple[type[Exception], ...], call: Callable[..., Awaitable[Any]]
) -> None:
    """`call`, a receive on the stream that it is given, raises `error`, and the stream's data stays
    there."""
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        peer.send(b"data")
        with pytest.raises(error):
            await call(stream)
        assert await stream.receive_some() == b"data"


# -- receive_some


@pytest.mark.parametrize("max_bytes", [1, 7, 4095, 4096, 4097, 131072, 2**31, 2**70, None])
async def test_max_bytes(max_bytes: int | None) -> None:
    stream, peer = stream_and_peer()
    whole = pattern(60_000)
    async with closing(stream, peer):
        peer.send(whole)
        got = b""
        for _ in range(3):
            chunk = await stream.receive_some(max_bytes)
            assert type(chunk) is bytes
            assert 1 <= len(chunk) <= (max_bytes or len(whole))
            got += chunk
            if len(got) == len(whole):
                break
        assert got == whole[: len(got)]
        peer.close()
        assert await receive_all(stream) == whole[len(got) :]


@pytest.mark.parametrize(
    ("max_bytes", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (-(2**70), ValueError),
        (1.0, TypeError),
        ("9", TypeError),
        (b"", TypeError),
    ],
)
async def test_impossible_max_bytes_take_nothing(max_bytes: Any, error: type[Exception]) -> None:
    await takes_nothing(error, lambda stream: stream.receive_some(max_bytes))


@pytest.mark.parametrize("kind", ["unix", "tcp", "pipe"])
async def test_the_end_of_the_stream_stays(kind: str) -> None:
    if kind == "pipe":
        read, write = os.pipe()
        stream: Any = ReceiveStream(read)
        os.write(write, b"last")
        os.close(write)
    else:
        left, right = unix_sockets() if kind == "unix" else tcp_sockets()
        stream = SocketStream(left)
        right.send(b"last")
        right.close()
    async with closing(stream):
        assert await stream.receive_some() == b"last"
        for _ in range(3):
            assert await stream.receive_some() == b""
            assert await stream.receive_some(5) == b""
            assert await stream.receive_into(bytearray(5)) == 0


async def test_bulk_and_small_messages_by_turns() -> None:
    """The receive path chooses its buffers by what came before; what comes out may not depend on
    it."""
    stream, peer = stream_and_peer()
    whole, start = pattern(500_000), 0
    async with closing(stream, peer):
        for size in [1, 4096, 100_000, 5, 5, *[20] * 20, 4096, 90_000, 4097, *[1] * 9, 70_000]:
            peer.send(whole[start : start + size])
            assert await stream.receive_exactly(size) == whole[start : start + size]
            start += size


async def test_async_for() -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        peer.send(b"one")
        got = []
        async for chunk in stream:
            got.append(chunk)
            if chunk == b"one":
                peer.send(b"two")
            else:
                peer.close()
        assert got == [b"one", b"two"]


async def test_a_stream_that_is_not_read_pushes_back() -> None:
    """Before the first read and after one, what a peer can send is what the kernel's own buffers
    hold."""
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        room = clog(peer.fileno())
        await passes(50)
        assert clog(peer.fileno()) == 0
        assert len(await stream.receive_some(1)) == 1
        await passes(50)
        assert clog(peer.fileno()) <= room
        assert trio_uring.current_statistics().bytes_received == 1


# -- receive_into


class Record(ctypes.Structure):
    """What NumPy calls a structured type."""

    _fields_ = (("number", ctypes.c_int32), ("name", ctypes.c_char * 4))


INTO: dict[str, Any] = {
    "bytearray": lambda: bytearray(40),
    "slice": lambda: memoryview(bytearray(100))[20:60],
    "array of uint32": lambda: array.array("I", [0] * 10),
    "two dimensions": lambda: memoryview(bytearray(40)).cast("B", (5, 8)),
    "mmap": lambda: mmap.mmap(-1, 40),
    "ctypes array": lambda: (ctypes.c_uint32 * 10)(),
    "records": lambda: (Record * 5)(),
    "big-endian ctypes array": lambda: (ctypes.c_uint32.__ctype_be__ * 10)(),
}


async def leave_over(stream: SocketStream, count: int, wanted: int = 11) -> None:
    """Makes an interrupted receive keep the `count` bytes that the peer has sent."""
    before = trio_uring.current_statistics().bytes_received
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_exactly, wanted)
        await until(
            lambda: trio_uring.current_statistics().bytes_received == before + count,
            "the bytes received",
        )
        await until_blocked(stream.socket.fileno())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("left_over", [False, True])
async def test_receive_into(name: str, left_over: bool) -> None:
    """Also with bytes that an interrupted receive left in the stream."""
    stream, peer = stream_and_peer()
    buffer = INTO[name]()
    async with closing(stream, peer):
        peer.send(b"0123456789")
        if left_over:
            await leave_over(stream, 10)
        assert await stream.receive_into(buffer) == 10
        assert memoryview(buffer).tobytes() == b"0123456789" + bytes(30)


@pytest.mark.parametrize("left_over", [False, True])
async def test_receive_into_a_buffer_that_is_too_small(left_over: bool) -> None:
    stream, peer = stream_and_peer()
    buffer = bytearray(4)
    async with closing(stream, peer):
        peer.send(b"0123456789")
        if left_over:
            await leave_over(stream, 10)
        assert await stream.receive_into(buffer) == 4
        assert buffer == b"0123"
        assert await stream.receive_some() == b"456789"


@pytest.mark.parametrize(
    "buffer",
    [
        b"read-only",
        memoryview(b"read-only"),
        bytearray(),
        memoryview(bytearray(8))[::2],
        "text",
        None,
        [bytearray(4)],
    ],
)
async def test_buffers_that_cannot_be_received_into_take_nothing(buffer: Any) -> None:
    await takes_nothing((TypeError, ValueError), lambda stream: stream.receive_into(buffer))


@pytest.mark.cpython_only("PyPy lets an exported bytearray be resized")
async def test_receive_into_holds_its_buffer_while_blocked_and_no_longer() -> None:
    stream, peer = stream_and_peer()
    buffer = bytearray(10)
    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_into, buffer)
        await until_blocked(stream.socket.fileno())
        with pytest.raises(BufferError):
            buffer.append(1)
        peer.send(b"xyz")
        await until(lambda: buffer[:3] == b"xyz", "the bytes in the buffer")
        await trio.testing.wait_all_tasks_blocked()
        buffer.append(1)
        assert buffer == b"xyz" + bytes(7) + b"\x01"


@pytest.mark.parametrize("when", ["before it began", "while blocked"])
async def test_a_cancelled_receive_into_lets_go_of_its_buffer(when: str) -> None:
    stream, peer = stream_and_peer()
    buffer = bytearray(10)
    async with closing(stream, peer):
        async with trio.open_nursery() as nursery:
            if when == "before it began":
                nursery.cancel_scope.cancel()
            nursery.start_soon(stream.receive_into, buffer)
            if when == "while blocked":
                await until_blocked(stream.socket.fileno())
                nursery.cancel_scope.cancel()
        buffer.append(1)
        peer.send(b"data")
        assert await stream.receive_some() == b"data"
        assert buffer == bytes(10) + b"\x01"


# -- receive_exactly


async def test_receive_exactly() -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        with trio.testing.assert_checkpoints():
            assert await stream.receive_exactly(0) == b""
        peer.send(b"abcdef")
        assert await stream.receive_exactly(2) == b"ab"
        assert await stream.receive_exactly(0) == b""
        assert await stream.receive_some() == b"cdef"


async def test_receive_exactly_over_many_pieces() -> None:
    stream, peer = stream_and_peer()
    whole, got = pattern(300_000), []
    async with closing(stream, peer), trio.open_nursery() as nursery:

        async def receive() -> None:
            got.append(await stream.receive_exactly(len(whole)))

        nursery.start_soon(receive)
        for start in range(0, len(whole), 10_000):
            await until_blocked(stream.socket.fileno())
            peer.send(whole[start : start + 10_000])
            await passes(3)
        await until(lambda: got, "the whole")
        assert got == [whole]


@pytest.mark.parametrize("count", [6, 1000, 2**40])
async def test_the_end_inside_receive_exactly_keeps_the_bytes(count: int) -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        peer.send(b"abcde")
        peer.close()
        for _ in range(2):
            with pytest.raises(IncompleteReadError) as caught:
                await stream.receive_exactly(count)
            assert (caught.value.partial, caught.value.expected) == (b"abcde", count)
            assert isinstance(caught.value, EOFError)
            assert str(count) in str(caught.value)
        assert await stream.receive_exactly(2) == b"ab"
        assert await stream.receive_some() == b"cde"
        assert await stream.receive_some() == b""


async def test_a_cancelled_receive_exactly_gives_its_bytes_to_the_next() -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        for part in (b"abc", b"def"):
            peer.send(part)
            await leave_over(stream, len(part), wanted=100)
        peer.send(b"ghi")
        first = await stream.receive_some(2)
        assert first in (b"a", b"ab")
        assert first + await stream.receive_exactly(8 - len(first)) == b"abcdefgh"
        assert await stream.receive_some() == b"i"


@pytest.mark.parametrize(
    ("count", "error"), [(-1, ValueError), ("3", TypeError), (2.0, TypeError), (None, TypeError)]
)
async def test_impossible_counts_take_nothing(count: Any, error: type[Exception]) -> None:
    await takes_nothing(error, lambda stream: stream.receive_exactly(count))


async def test_a_cancelled_receive_leaves_the_data_in_the_socket() -> None:
    stream, peer = stream_and_peer()
    peer.send(b"data")
    async with closing(stream, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some()
        assert scope.cancelled_caught
        assert drain(stream.socket._sock) == b"data"  # type: ignore[attr-defined]
