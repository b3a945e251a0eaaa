"""send_all: what it takes, in which order it goes out, what it refuses, and when it releases
buffers.

Rules: the other end is a plain socket or trio's own stream. What is refused is refused as a whole:
nothing of it was sent, and the stream still works.
"""

from __future__ import annotations

import array
import collections
import contextlib
import ctypes
import hashlib
import mmap
import os
import random
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import (
    TINY,
    clog,
    closing,
    count_of,
    drain,
    pattern,
    pipe_streams,
    receive_all,
    unix_sockets,
    unix_streams,
    until,
    until_blocked,
)

import trio_uring
from trio_uring import SendStream

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def mapped(data: bytes) -> mmap.mmap:
    area = mmap.mmap(-1, len(data))
    area.write(data)
    return area


async def sent(data: Any, make: Callable[[], Any] = unix_streams) -> bytes:
    """What comes out at the other end of a pair when `data` goes in."""
    left, right = make()
    got = b""

    async def receive() -> None:
        nonlocal got
        got = await receive_all(right)

    async with closing(left, right), trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await left.send_all(data)
        assert left.bytes_sent == sum(
            memoryview(item).nbytes
            for item in (data if isinstance(data, (list, tuple)) else [data])
        )
        await left.aclose()
    return got


class Record(ctypes.Structure):
    """What NumPy calls a structured type."""

    _fields_ = (("number", ctypes.c_int32), ("name", ctypes.c_char * 4))


BUFFERS = {
    "records": (Record * 2)(Record(1, b"one"), Record(2, b"two")),
    "bytes": pattern(1000),
    "bytearray": bytearray(pattern(1000)),
    "memoryview": memoryview(pattern(1000))[100:900],
    "array of uint32": array.array("I", range(250)),
    "array of double": array.array("d", [0.5, -1.0]),
    "two dimensions": memoryview(pattern(1200)).cast("B", (30, 40)),
    "three dimensions of int16": memoryview(pattern(1200)).cast("B").cast("h", (5, 10, 12)),
    "ctypes array": (ctypes.c_uint64 * 3)(1, 2, 3),
    "big-endian ctypes array": (ctypes.c_uint32.__ctype_be__ * 3)(1, 2, 3),
    "two-dimensional ctypes array": ((ctypes.c_int * 3) * 2)((1, 2, 3), (4, 5, 6)),
    "mmap": mapped(pattern(5000)),
    "a subclass of bytes": type("Bytes", (bytes,), {})(b"abc"),
    "zero dimensions": memoryview(ctypes.c_int(7)),
}


@pytest.mark.parametrize("make", [unix_streams, pipe_streams])
@pytest.mark.parametrize("name", BUFFERS)
async def test_every_kind_of_buffer(name: str, make: Callable[[], Any]) -> None:
    data = BUFFERS[name]
    assert await sent(data, make) == bytes(memoryview(data).tobytes())


@pytest.mark.parametrize("make", [unix_streams, pipe_streams])
@pytest.mark.parametrize("as_type", [list, tuple])
async def test_lists_go_out_in_order(
    as_type: Callable[[Any], Any], make: Callable[[], Any]
) -> None:
    data = as_type([*BUFFERS.values(), b"", *reversed(BUFFERS.values())])
    assert await sent(data, make) == b"".join(memoryview(item).tobytes() for item in data)


@pytest.mark.parametrize("make", [unix_streams, pipe_streams])
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2049, 20_000])
async def test_more_buffers_than_one_operation_takes(count: int, make: Callable[[], Any]) -> None:
    whole = pattern(count * 3)
    assert await sent([whole[3 * i : 3 * i + 3] for i in range(count)], make) == whole
    vectors = count_of("SENDMSG").submitted + count_of("WRITEV").submitted
    # A last one alone goes by SEND or WRITE.
    assert vectors >= -(-count // 1024) - (count % 1024 == 1)


async def test_a_list_is_one_operation() -> None:
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        await stream.send_all([b"header", b"", bytearray(b"body")])
        assert count_of("SENDMSG").submitted == 1
        assert count_of("SEND").submitted == 0
        assert drain(right) == b"headerbody"


async def test_a_sequence_that_is_no_list() -> None:
    data = collections.deque([b"a", bytearray(b"b"), memoryview(b"c")])
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        await stream.send_all(data)
        assert drain(right) == b"abc"


@pytest.mark.parametrize(
    "data", [b"", bytearray(), memoryview(b""), [], (), [b""], [b"", bytearray(), memoryview(b"")]]
)
async def test_nothing_to_send_is_a_checkpoint_and_no_operation(data: Any) -> None:
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        await stream.send_all(b"before")
        before = trio_uring.current_statistics().operations
        with trio.testing.assert_checkpoints():
            await stream.send_all(data)
        assert stream.bytes_sent == 0
        assert trio_uring.current_statistics().operations == before
        assert drain(right) == b"before"


@pytest.mark.parametrize("data", [b"x", [b"x"], b"", bytearray(b"x"), "no buffer"])
async def test_a_send_that_is_refused_at_once_has_sent_nothing(data: Any) -> None:
    """bytes_sent does not go on telling of the last one."""
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        await stream.send_all(b"before")
        assert stream.bytes_sent == 6
        await stream.aclose()
        with pytest.raises((trio.ClosedResourceError, TypeError)):
            await stream.send_all(data)
        assert stream.bytes_sent == 0


HOLES = memoryview(bytes(100))[::2]
REFUSED = [
    ("text", TypeError), (5, TypeError), (None, TypeError), (1.5, TypeError), ({"a": 1}, TypeError),
    (object(), TypeError), (["text"], TypeError), ([b"good", "text"], TypeError),
    ([b"good", 3], TypeError), ([b"good", None], TypeError), ([[b"nested"]], TypeError),
    (HOLES, BufferError), ([b"good", HOLES], BufferError), ([b"good", HOLES, b"x"], BufferError),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "error"), REFUSED, ids=lambda value: "holes" if value is HOLES else str(value)[:20]
)
async def test_what_is_refused_sends_nothing(data: Any, error: type[Exception]) -> None:
    left, right = unix_sockets()
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        with pytest.raises(error):
            await stream.send_all(data)
        assert drain(right) == b""
        await stream.send_all(b"next")
        assert drain(right) == b"next"


async def test_one_large_buffer_goes_whole() -> None:
    data = random.Random(1).randbytes(64 * MIB)
    assert hashlib.blake2b(await sent(data)).digest() == hashlib.blake2b(data).digest()
    assert trio_uring.current_statistics().short_writes > 0


def memory_peak(reset: bool = False) -> int:
    """Peak resident bytes of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.mark.cpython_only("PyPy's collector chooses when memory is free")
async def test_hundreds_of_mebibytes_without_joining_them() -> None:
    block = random.Random(2).randbytes(4 * MIB)
    data = [memoryview(block)[start : start + MIB] for start in range(0, 300 * 9973, 9973)]
    expected, got = hashlib.blake2b(), hashlib.blake2b()
    for view in data:
        expected.update(view)
    left, right = unix_streams()
    before = memory_peak(reset=True)

    async def receive() -> None:
        async for chunk in right:
            got.update(chunk)

    async with closing(left, right), trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await left.send_all(data)
        assert left.bytes_sent == 300 * MIB
        await left.aclose()
    assert got.digest() == expected.digest()
    assert memory_peak() - before < 24 * MIB


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("make", [unix_streams, pipe_streams])
async def test_a_bytearray_can_be_resized_when_send_all_is_over(
    as_list: bool, make: Callable[[], Any]
) -> None:
    left, right = make()
    data = bytearray(pattern(1000))
    async with closing(left, right):
        await left.send_all([data, b"x"] if as_list else data)
        data.extend(b"more")
        data.clear()
        assert await right.receive_some() == pattern(1000) + (b"x" if as_list else b"")


def sending_pair(kind: str) -> tuple[Any, int]:
    """A clogged sender, and the descriptor that reads what it sent."""
    if kind == "pipe":
        read, write = os.pipe()
        clog(write)
        return SendStream(write), read
    left, right = unix_sockets(TINY)
    clog(left.fileno())
    return trio_uring.SocketStream(left), right.detach()


@pytest.mark.cpython_only("PyPy lets an exported bytearray be resized")
@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_blocked_send_holds_its_buffers_and_a_cancelled_one_lets_go(
    kind: str, as_list: bool
) -> None:
    stream, reader = sending_pair(kind)
    data, fd = bytearray(100), stream._lease.fd
    try:
        async with closing(stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, [data, b"x"] if as_list else data)
                await until_blocked(fd)
                with pytest.raises(BufferError):
                    data.append(1)
                nursery.cancel_scope.cancel()
            data.append(1)
    finally:
        os.close(reader)


@pytest.mark.parametrize("as_list", [False, True])
async def test_a_send_that_was_cancelled_before_it_began_lets_go(as_list: bool) -> None:
    left, right = unix_streams()
    data = bytearray(100)
    async with closing(left, right):
        with trio.CancelScope() as scope:
            scope.cancel()
            await left.send_all([data, b"x"] if as_list else data)
        assert scope.cancelled_caught
        assert left.bytes_sent == 0
        data.append(1)


async def test_bytes_sent_is_of_the_last_send_and_grows_while_it_runs() -> None:
    left, right = unix_sockets(TINY)
    stream = trio_uring.SocketStream(left)
    async with closing(stream, right):
        assert stream.bytes_sent == 0
        await stream.send_all(b"12345")
        assert stream.bytes_sent == 5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(200_000))
            await until_blocked(left.fileno())
            got = drain(right)
            assert 0 < stream.bytes_sent < 200_000
            while len(got) < 200_005:
                got += await until(lambda: drain(right), "more bytes")
        assert stream.bytes_sent == 200_000


@types.coroutine
def parked(call: Any, then: Callable[[], object]) -> Any:
    """Awaits `call`, and does something as soon as it has parked, before anything else can run."""
    message = call.send(None)
    then()
    outcome = yield message
    with contextlib.suppress(StopIteration):
        call.send(outcome)


async def test_a_list_that_changes_while_its_send_is_queued_changes_nothing():
    ours, theirs = unix_streams()
    async with ours, theirs:
        data = [b"first", b"second"]
        await parked(ours.send_all(data), data.clear)
        assert ours.bytes_sent == 11
        assert await theirs.receive_some() == b"firstsecond"
