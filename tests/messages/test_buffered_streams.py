"""BufferedReceiveStream over real streams: the ring's, trio's, and trio's in memory.

Rules: trio's own suite is not adapted. In the property test, the other end writes in pieces and
knows nothing of buffers. An interruption comes after a number of passes, or right after bytes
moved, and never depends on a clock.
"""

from __future__ import annotations

import gc
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.by_hand import park
from support.cuts import Cutter, check_cut_receives, cuts
from support.scripted import ScriptedReceiver, connected, network_stream
from support.streams import (
    checked_run,
    clog,
    closing,
    count_of,
    pattern,
    tcp_sockets,
    unix_sockets,
    unix_streams,
)
from trio.testing import check_one_way_stream

from trio_uring import (
    BufferedReceiveStream,
    DelimiterNotFound,
    FrameStream,
    IncompleteReadError,
    ReceiveStream,
    SendStream,
    SocketStream,
    receive_frame,
)
from trio_uring._descriptors.direction import INTO

from .test_frames import Listing

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

BUFFER_SIZES = [0, 1, 7, 64, 65536]


# -- trio's suite


def wrapping(make: Callable[[], tuple[Any, Any]], buffer_size: int) -> Callable[[], Any]:
    async def maker() -> tuple[Any, Any]:
        sender, receiver = make()
        return sender, BufferedReceiveStream(receiver, buffer_size)

    return maker


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
async def test_trios_suite_in_memory(buffer_size: int) -> None:
    memory = trio.testing.memory_stream_one_way_pair
    lockstep = trio.testing.lockstep_stream_one_way_pair
    await check_one_way_stream(wrapping(memory, buffer_size), wrapping(lockstep, buffer_size))


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
async def test_trios_suite_over_the_ring(buffer_size: int) -> None:
    def clogged() -> tuple[Any, Any]:
        left, right = unix_sockets()
        clog(left.fileno())
        return SocketStream(left), SocketStream(right)

    await check_one_way_stream(wrapping(unix_streams, buffer_size), wrapping(clogged, buffer_size))


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
async def test_trios_suite_over_a_pipe(buffer_size: int) -> None:
    def pipe() -> tuple[Any, Any]:
        read, write = os.pipe()
        return SendStream(write), ReceiveStream(read)

    await check_one_way_stream(wrapping(pipe, buffer_size), None)


@pytest.mark.parametrize("buffer_size", BUFFER_SIZES)
async def test_trios_suite_over_trios_sockets(buffer_size: int) -> None:
    def pair() -> tuple[Any, Any]:
        left, right = (
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in unix_sockets()
        )
        return left, right

    await check_one_way_stream(wrapping(pair, buffer_size), None)


# -- the same reads over every kind


@pytest.mark.parametrize("kind", ["ring", "trio", "memory", "stapled", "pipes", "tls"])
async def test_lines_and_records(kind: str) -> None:
    async with connected(kind) as (sender, receiver):
        stream = BufferedReceiveStream(receiver, 16)
        large = pattern(5000)

        async def send() -> None:
            await sender.send_all(b"GET /\r\nHost: x\r\n\r\n")
            await sender.send_all(large + b"end")
            await sender.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await stream.receive_until(b"\r\n", 100) == b"GET /\r\n"
            assert b"Host: x\r\n".startswith(stream.peek(9))
            assert await stream.receive_until(b"\r\n\r\n", 100) == b"Host: x\r\n\r\n"
            assert await stream.receive_exactly(5000) == large
            assert await stream.receive_exactly(3) == b"end"
            assert await stream.receive_some() == b""


async def test_small_reads_are_one_operation_and_large_ones_have_no_copy() -> None:
    sender, receiver = unix_streams()
    stream = BufferedReceiveStream(receiver, 4096)
    async with closing(sender, stream):
        await sender.send_all(pattern(1000))
        assert b"".join([await stream.receive_exactly(10) for _ in range(100)]) == pattern(1000)
        assert count_of("RECV").submitted == 1
        buffer = bytearray(100_000)
        await sender.send_all(pattern(100_000))
        assert await stream.receive_into(buffer) == 100_000
        assert buffer == pattern(100_000)
        assert count_of("RECV").submitted == 2
        operation = receiver._receiving.operations[INTO]
        assert operation is not None  # it went through the stream's own receive_into


@pytest.mark.uring_only("what a destroyed call leaves in the ring; trio's own waits know of none")
async def test_a_destroyed_receive_into_lets_the_memory_go() -> None:
    ours, peer = unix_sockets()
    receiver = SocketStream(ours)
    stream = BufferedReceiveStream(receiver, 16)
    async with closing(receiver, peer):
        buffer = bytearray(64)
        call = stream.receive_into(buffer)
        await park(call)
        call.close()
        peer.send(b"abcd")
        assert await stream.receive_some() == b"abcd"
        gc.collect()
        buffer.append(0)


async def test_an_exact_read_of_much_allocates_nothing_ahead() -> None:
    """Over the ring; see test_frames_receive for all kinds."""
    sender, receiver = unix_streams()
    stream = BufferedReceiveStream(receiver, 16)
    async with closing(sender, stream):
        await sender.send_all(b"abc")
        await sender.aclose()
        with pytest.raises(IncompleteReadError) as info:
            await stream.receive_exactly(2**40)
        assert (info.value.partial, info.value.expected) == (b"abc", 2**40)


async def test_a_broken_connection_of_a_network_does_not_seem_to_have_ended() -> None:
    """Sockets say it once, and then give b""; what had come before is still there."""
    peer = ScriptedReceiver([b"abcdef"], ended=True)
    peer.fail(trio.BrokenResourceError("scripted"))
    stream = network_stream(trio.StapledStream(Listing(), peer), 8)
    assert await stream.receive_some(1) == b"a"
    with pytest.raises(trio.BrokenResourceError, match="scripted"):
        await stream.receive_exactly(10)
    assert stream.peek() == b"bcdef"
    assert await stream.receive_exactly(5) == b"bcdef"
    buffer = bytearray(10)
    for receive in (
        stream.receive_some,
        partial(stream.receive_some, 1),
        partial(stream.receive_into, buffer),
        partial(stream.receive_exactly, 1),
        partial(stream.receive_until, b"x", 5),
        partial(receive_frame, stream),
        FrameStream(stream).receive,
    ):
        with pytest.raises(trio.BrokenResourceError):
            await receive()


# -- cut short, over sockets

sizes = st.one_of(st.integers(1, 300), st.integers(1, 20_000))
receives = st.one_of(
    st.tuples(st.just("some"), st.one_of(st.none(), sizes)),
    st.tuples(st.just("into"), sizes),
    st.tuples(st.just("exactly"), st.one_of(st.just(0), sizes)),
    st.tuples(st.just("until"), st.integers(3, 3000)),
)
DELIMITER = b"\x01\x00"


async def receive_once(
    stream: BufferedReceiveStream, kind: str, size: Any, timeout: float | None = None
) -> bytes:
    if kind == "some":
        return await stream.receive_some(size, timeout=timeout)
    if kind == "into":
        buffer = bytearray(b"\xee" * size)
        count = await stream.receive_into(buffer, timeout=timeout)
        assert buffer[count:] == b"\xee" * (size - count)
        return bytes(buffer[:count])
    try:
        if kind == "exactly":
            got = await stream.receive_exactly(size, timeout=timeout)
            assert len(got) == size
        else:
            got = await stream.receive_until(DELIMITER, size, timeout=timeout)
            assert got.endswith(DELIMITER)
            assert got.count(DELIMITER) == 1
            assert len(got) <= size
    except (IncompleteReadError, DelimiterNotFound):
        return b""  # what came stays in the stream
    return got


async def receive_with_cuts(
    stream: BufferedReceiveStream, calls: list[Any], cutter: Cutter
) -> bytes:
    got = bytearray()
    for (kind, size), cut in calls:
        ahead = stream.peek()
        if cut is None:
            part = await receive_once(stream, kind, size)
        else:
            part = await cutter.run(
                cut, lambda kind=kind, size=size, **opt: receive_once(stream, kind, size, **opt)
            )
        part = part or b""
        assert part[: len(ahead)] == ahead[: len(part)]  # a peek is what comes next
        got += part
    while part := await stream.receive_some():
        got += part
    return bytes(got)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(st.tuples(st.integers(0, 12), sizes), max_size=12),
    calls=st.lists(st.tuples(receives, st.one_of(st.none(), cuts)), max_size=25),
    buffer_size=st.sampled_from(BUFFER_SIZES),
    kind=st.sampled_from(["ring", "ring tcp", "trio"]),
)
def test_reads_cut_short_lose_nothing(
    pieces: list[Any], calls: list[Any], buffer_size: int, kind: str
) -> None:
    def receiver_of(sock: socket.socket) -> trio.abc.ReceiveStream:
        return (
            trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            if kind == "trio"
            else SocketStream(sock)
        )

    async def main() -> None:
        left, right = tcp_sockets() if kind == "ring tcp" else unix_sockets()
        peer = trio.SocketStream(trio.socket.from_stdlib_socket(left))
        stream = BufferedReceiveStream(receiver_of(right), buffer_size)
        await check_cut_receives(receive_with_cuts, stream, peer, pieces, calls)

    checked_run(main)
