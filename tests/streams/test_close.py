"""Closing and breaking, at any moment: which tasks wake, with what error, and what the peer sees.

Rules: "promptly" is counted in passes of the scheduler, never in seconds. A test runs over each
transport that supports it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import (
    TINY,
    clog,
    closing,
    drain,
    operations_on,
    passes,
    pipe_streams,
    receiving,
    stream_and_peer,
    tcp_sockets,
    unix_sockets,
    unix_streams,
    until,
    until_blocked,
)

from trio_uring import SendStream, SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROMPT = 20  # passes
MAKERS = [
    pytest.param(lambda: unix_sockets(TINY), id="unix"),
    pytest.param(lambda: tcp_sockets(65536), id="tcp"),
]


async def expect(
    error: type[BaseException], call: Callable[..., Awaitable[Any]], *args: Any
) -> None:
    with pytest.raises(error):
        await call(*args)


def saw_end(peer: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        drain(peer)
        try:
            return peer.recv(1) == b""
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_wakes_both_directions_and_the_peer_sees_the_end(
    make: Callable[[], Any],
) -> None:
    left, peer = make()
    stream = SocketStream(left)
    clog(left.fileno())
    async with closing(stream, peer), trio.open_nursery() as nursery:
        fd = left.fileno()
        nursery.start_soon(expect, trio.ClosedResourceError, stream.receive_some)
        nursery.start_soon(expect, trio.ClosedResourceError, stream.send_all, bytes(1 << 24))
        await until_blocked(fd, 2)
        await stream.aclose()
        assert operations_on(fd) == []
        for _ in range(PROMPT):
            if saw_end(peer):
                break
            await trio.lowlevel.checkpoint()
        else:
            pytest.fail("the peer does not see the end")


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_with_a_blocked_receiver_sends_the_end_at_once(
    make: Callable[[], Any],
) -> None:
    left, peer = make()
    stream = SocketStream(left)
    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, stream.receive_some)
        await until_blocked(left.fileno())
        stream._close()
        assert saw_end(peer)  # before the scheduler has made another pass


async def test_closing_an_end_of_a_pipe_wakes_its_task() -> None:
    sender, receiver = pipe_streams()
    async with closing(sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, receiver.receive_some)
        await until_blocked(receiver._receiving.fd)
        await receiver.aclose()
        await expect(trio.BrokenResourceError, sender.send_all, b"x")
    sender, receiver = pipe_streams()
    clog(sender._lease.fd)
    async with closing(sender, receiver), trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, sender.send_all, b"x")
        await until_blocked(sender._lease.fd)
        await sender.aclose()


async def test_closing_before_the_operation_reached_the_kernel() -> None:
    """The task that closes runs before or after the one that receives; either way that one learns
    of it."""
    for _ in range(100):
        left, peer = unix_sockets()
        stream = SocketStream(left)
        async with closing(stream, peer), trio.open_nursery() as nursery:
            for call in (stream.receive_some, lambda s=stream: s.receive_into(bytearray(9))):
                nursery.start_soon(_closed_or_busy, call)
            nursery.start_soon(stream.aclose)


async def _closed_or_busy(call: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises((trio.ClosedResourceError, trio.BusyResourceError)):
        await call()


async def test_a_queued_operation_never_reaches_a_stranger_with_the_same_number() -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    number = left.fileno()
    async with closing(stream, peer):
        started = trio.Event()

        async def receive() -> None:
            started.set()
            await expect(trio.ClosedResourceError, stream.receive_some)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await started.wait()
            stream._close()
            strangers = socket.socketpair()
            assert number in [one.fileno() for one in strangers]
            for one in strangers:
                one.send(b"not yours")
        await passes(5)
        assert [drain(one) for one in strangers] == [b"not yours"] * 2
        for one in strangers:
            one.close()


@pytest.mark.parametrize("make", [unix_streams, pipe_streams, lambda: pipe_streams()[::-1]])
async def test_aclose_twice_and_in_a_cancelled_scope(make: Callable[[], Any]) -> None:
    stream, other = make()
    fd = stream._lease.fd
    await trio.aclose_forcefully(other)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
    assert scope.cancelled_caught
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with trio.testing.assert_checkpoints():
        await stream.aclose()


async def test_everything_on_a_closed_stream_says_closed() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        await left.aclose()
        for call in (
            lambda: left.send_all(b"x"),
            lambda: left.send_all([]),
            lambda: left.send_all(b""),
            left.receive_some,
            lambda: left.receive_into(bytearray(1)),
            lambda: left.receive_exactly(1),
            lambda: left.receive_exactly(0),
            left.send_eof,
            left.wait_send_all_might_not_block,
        ):
            await expect(trio.ClosedResourceError, call)


async def test_closing_the_socket_behind_the_streams_back() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        left.socket.close()
        await expect(trio.ClosedResourceError, left.send_all, b"x")
        await expect(trio.ClosedResourceError, left.receive_some)
        assert await right.receive_some() == b""


@pytest.mark.parametrize("first", ["send_all", "wait_send_all_might_not_block"])
async def test_one_sender_at_a_time(first: str) -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    clogged = clog(left.fileno())
    async with closing(stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(
            *(
                (stream.send_all, b"first")
                if first == "send_all"
                else (stream.wait_send_all_might_not_block,)
            )
        )
        await until_blocked(left.fileno())
        sent = stream.bytes_sent
        for call in (
            lambda: stream.send_all(b"second"),
            lambda: stream.send_all([b"second"]),
            lambda: stream.send_all(b""),
            stream.wait_send_all_might_not_block,
            stream.send_eof,
        ):
            await expect(trio.BusyResourceError, call)
        assert stream.bytes_sent == sent
        got = drain(peer)
        await trio.testing.wait_all_tasks_blocked()
        got += drain(peer)
        assert got[clogged:] == (b"first" if first == "send_all" else b"")


async def test_one_receiver_at_a_time() -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        async with receiving(stream) as got:
            for call in (
                stream.receive_some,
                lambda: stream.receive_into(bytearray(9)),
                lambda: stream.receive_exactly(9),
                lambda: stream.receive_exactly(0),
            ):
                await expect(trio.BusyResourceError, call)
            await stream.send_all(b"the other direction is free")
            peer.send(b"for the first")
        assert got == [b"for the first"]


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def test_a_reset_breaks_the_receiver() -> None:
    left, peer = tcp_sockets()
    stream = SocketStream(left)
    async with closing(stream), trio.open_nursery() as nursery:
        nursery.start_soon(broken, errno.ECONNRESET, stream.receive_some)
        await until_blocked(left.fileno())
        reset(peer)


@pytest.mark.parametrize("data", [bytes(1 << 24), [bytes(1 << 23)] * 2])
async def test_a_reset_breaks_the_sender(data: Any) -> None:
    left, peer = tcp_sockets(65536)
    stream = SocketStream(left)
    async with closing(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken, errno.ECONNRESET, stream.send_all, data)
            await until_blocked(left.fileno())
            reset(peer)
        await broken(errno.EPIPE, stream.send_all, data)


async def test_a_reset_wakes_both_directions() -> None:
    """The kernel reports a reset once. Whoever comes second sees a closed connection, as with
    trio's own streams."""
    left, peer = tcp_sockets(65536)
    stream, woken = SocketStream(left), []

    async def direction(call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        try:
            woken.append(await call(*args))
        except trio.BrokenResourceError:
            woken.append("broken")

    async with closing(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(direction, stream.receive_some)
            nursery.start_soon(direction, stream.send_all, bytes(1 << 24))
            await until_blocked(left.fileno(), 2)
            reset(peer)
    assert sorted(map(str, woken)) in (["b''", "broken"], ["broken", "broken"])


async def broken(number: int, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await call(*args)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


@pytest.mark.parametrize("data", [b"x", [b"x", b"y"]])
async def test_sending_to_nobody_breaks(data: Any) -> None:
    read, write = os.pipe()
    left, right = unix_sockets()
    sender, stream = SendStream(write), SocketStream(left)
    async with closing(sender, stream):
        os.close(read)
        right.close()
        for one in (sender, stream):
            await broken(errno.EPIPE, one.send_all, data)


@pytest.mark.parametrize("make", MAKERS)
async def test_half_close(make: Callable[[], Any]) -> None:
    left, peer = make()
    stream = SocketStream(left)
    async with closing(stream, peer):
        await stream.send_all(b"request")
        await stream.send_eof()
        await stream.send_eof()
        await until(lambda: drain(peer) == b"request" or None, "the request")
        await until(lambda: saw_end(peer), "the end")
        await expect(trio.ClosedResourceError, stream.send_all, b"more")
        await expect(trio.ClosedResourceError, stream.send_all, [b"more", b"more"])
        peer.send(b"reply")
        assert await stream.receive_some() == b"reply"
        peer.close()
        assert await stream.receive_some() == b""


async def test_send_eof_in_a_cancelled_scope_does_nothing() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        with trio.CancelScope() as scope:
            scope.cancel()
            await left.send_eof()
        assert scope.cancelled_caught
        await left.send_all(b"still open")
        assert await right.receive_some() == b"still open"


async def test_send_eof_with_a_blocked_receiver_leaves_it_alone() -> None:
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        async with receiving(stream) as got:
            await stream.send_eof()
            assert saw_end(peer)
            peer.send(b"reply")
        assert got == [b"reply"]


async def test_wait_send_all_might_not_block() -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    async with closing(stream, peer):
        await stream.wait_send_all_might_not_block()
        clog(left.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_send_all_might_not_block)
            await until_blocked(left.fileno())
            await passes(5)
            await until_blocked(left.fileno())
            drain(peer)
