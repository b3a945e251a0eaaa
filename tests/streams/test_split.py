"""SocketStream.split: two halves of one socket that close independently.

Rules: a plain socket shows what a half does to the peer.
"""

from __future__ import annotations

import gc
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.by_hand import park
from support.streams import (
    TINY,
    clog,
    closing,
    drain,
    pattern,
    stream_and_peer,
    tcp_sockets,
    unix_sockets,
    until,
    until_blocked,
    waits_are_ours,
)
from trio.testing import check_half_closeable_stream, check_one_way_stream, check_two_way_stream

from trio_uring import ReceiveStream, SendStream, SocketStream, UringSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAKERS = [pytest.param(unix_sockets, id="unix"), pytest.param(tcp_sockets, id="tcp")]


def staple(sock: socket.socket) -> trio.StapledStream[SendStream, ReceiveStream]:
    return trio.StapledStream(*SocketStream(sock).split())


# -- trio's own suites


@pytest.mark.parametrize("check", [check_two_way_stream, check_half_closeable_stream])
async def test_a_stapled_pair_is_a_stream(check: Callable[..., Awaitable[None]]) -> None:
    async def maker() -> tuple[Any, Any]:
        left, right = unix_sockets()
        return staple(left), staple(right)

    async def clogged() -> tuple[Any, Any]:
        left, right = unix_sockets(TINY)
        clog(left.fileno())
        clog(right.fileno())
        return staple(left), staple(right)

    await check(maker, clogged)


async def test_one_way() -> None:
    """Over halves whose other halves live on: closing must tell the peer although the socket stays
    open."""
    kept: list[Any] = []

    def ends(left: socket.socket, right: socket.socket) -> tuple[SendStream, ReceiveStream]:
        send, other_receive = SocketStream(left).split()
        other_send, receive = SocketStream(right).split()
        kept.extend([other_receive, other_send])
        return send, receive

    async def maker() -> tuple[Any, Any]:
        return ends(*unix_sockets())

    async def clogged() -> tuple[Any, Any]:
        left, right = unix_sockets(TINY)
        clog(left.fileno())
        return ends(left, right)

    await check_one_way_stream(maker, clogged)
    for half in kept:
        await half.aclose()


# -- closing


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_the_sending_half_sends_the_end(make: Callable[[], Any]) -> None:
    left, peer = make()
    send, receive = SocketStream(left).split()
    async with closing(send, receive, peer):
        await send.send_all(b"last words")
        await send.aclose()
        assert peer.recv(100) == b"last words"
        assert peer.recv(100) == b""
        peer.send(b"reply")
        assert await receive.receive_some() == b"reply"
        assert left.fileno() != -1
        await receive.aclose()
        assert left.fileno() == -1


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_the_receiving_half_leaves_the_sending_one(make: Callable[[], Any]) -> None:
    left, peer = make()
    send, receive = SocketStream(left).split()
    async with closing(send, receive, peer):
        await receive.aclose()
        await send.send_all(b"still here")
        assert peer.recv(100) == b"still here"
        if left.family == socket.AF_UNIX:
            with pytest.raises(BrokenPipeError):
                peer.send(b"x")
        else:
            peer.send(b"x")  # TCP cannot refuse one direction
        await send.aclose()
        assert left.fileno() == -1


async def test_a_tcp_sender_is_stopped_by_a_closed_receiving_half() -> None:
    left, peer = tcp_sockets(65536)
    send, receive = SocketStream(left).split()
    async with closing(send, receive, peer):
        await receive.aclose()
        assert 0 < clog(peer.fileno()) < 2**22
        await send.send_all(b"x")
        assert peer.recv(1) == b"x"


@pytest.mark.parametrize("first", ["send", "receive"])
async def test_a_blocked_half_wakes_and_the_other_goes_on(first: str) -> None:
    left, peer = unix_sockets(TINY)
    send, receive = SocketStream(left).split()
    fd = left.fileno()
    sent = clog(fd)
    ended: list[str] = []

    async def blocked(name: str, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)
        ended.append(name)

    async with closing(send, receive, peer), trio.open_nursery() as nursery:
        nursery.start_soon(blocked, "send", send.send_all, b"more")
        nursery.start_soon(blocked, "receive", receive.receive_some)
        await until_blocked(fd, 2)
        half, other = (send, receive) if first == "send" else (receive, send)
        await half.aclose()
        await until(lambda: ended, "the blocked task woke")
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [first]  # the other still waits
        await other.aclose()
    assert len(ended) == 2
    assert sent


async def test_the_other_half_of_a_closed_one_is_undisturbed_in_the_middle_of_a_transfer() -> None:
    data = pattern(2**20)
    left, right = unix_sockets(TINY)
    send, receive = SocketStream(left).split()
    peer = SocketStream(right)
    got = bytearray()
    async with closing(send, receive, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send.send_all, data)
        await until(lambda: send.bytes_sent or send._sending.held, "it sends")
        await receive.aclose()
        while len(got) < len(data):
            got += await peer.receive_some()
    assert got == data


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_descriptor_is_closed_once_when_both_are(order: tuple[int, int]) -> None:
    stream, peer = stream_and_peer()
    fd = stream.socket.fileno()
    halves = stream.split()
    async with closing(peer):
        for index in order:
            await halves[index].aclose()
            await halves[index].aclose()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert peer.recv(1) == b""


@pytest.mark.parametrize("make", [trio.socket.from_stdlib_socket, UringSocket])
async def test_closing_the_socket_itself(make: Callable[[socket.socket], Any]) -> None:
    """One of ours wakes who is blocked on a half, as it wakes who is blocked on a stream."""
    left, peer = unix_sockets(TINY)
    sock = make(left)
    send, receive = SocketStream(sock).split()
    clog(left.fileno())

    async def blocked(call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(*args)

    async with closing(peer), trio.open_nursery() as nursery:
        if make is UringSocket:
            nursery.start_soon(blocked, send.send_all, b"more")
            nursery.start_soon(blocked, receive.receive_some)
            await until_blocked(left.fileno(), 2)
        sock.close()
        for half in (send, receive):
            await half.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await send.send_all(b"x")


async def test_the_socket_beside_the_halves() -> None:
    """What a task does with the socket directly is not disturbed by a half of the other
    direction."""
    left, peer = unix_sockets()
    sock = UringSocket(left)
    send, receive = SocketStream(sock).split()
    got: list[bytes] = []

    async def recv() -> None:
        got.append(await sock.recv(10))

    async with closing(send, receive, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recv)
            await trio.testing.wait_all_tasks_blocked()
            await send.aclose()
            assert peer.recv(1) == b""
            peer.send(b"x")
        assert got == [b"x"]


async def test_closing_in_a_cancelled_scope() -> None:
    stream, peer = stream_and_peer()
    send, receive = stream.split()
    async with closing(peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await send.aclose()
            with pytest.raises(trio.Cancelled):
                await receive.aclose()
        assert send.socket.fileno() == -1


@pytest.mark.cpython_only("PyPy counts no references: what is forgotten is freed at a collection")
async def test_forgotten_halves_close_the_socket() -> None:
    stream, peer = stream_and_peer()
    fd = stream.socket.fileno()
    halves: Any = stream.split()
    async with closing(peer):
        with pytest.warns(ResourceWarning):  # noqa: PT031  (the first may do)
            del stream, halves
            gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# -- handing over


async def test_the_whole_stream_is_handed_over() -> None:
    stream, peer = stream_and_peer()
    stream.send_timeout, stream.receive_timeout = 5.0, 7.0
    fd = stream.socket.fileno()
    send, receive = stream.split()
    async with closing(send, receive, peer):
        assert isinstance(send, SendStream)
        assert isinstance(receive, ReceiveStream)
        assert send.socket is receive.socket
        assert (send.send_timeout, receive.receive_timeout) == (5.0, 7.0)
        calls: list[Any] = [
            lambda: stream.send_all(b"x"),
            stream.receive_some,
            stream.send_eof,
            lambda: stream.receive_exactly(1),
        ]
        for call in calls:
            with pytest.raises(trio.ClosedResourceError):
                await call()
        with pytest.raises(trio.ClosedResourceError):
            stream.split()
        await stream.aclose()
        assert send.socket.fileno() == fd
        await send.send_all([b"a", bytearray(b"b")])
        assert drain(peer) == b"ab"


async def test_after_use_of_the_whole() -> None:
    """The operations that it had made are used on, by the halves."""
    stream, peer = stream_and_peer()
    async with closing(stream, peer):
        for _ in range(2):
            await stream.send_all(b"x")
            await stream.send_all([b"x", b"y"])
            assert drain(peer) == b"xxy"
            peer.send(b"z")
            assert await stream.receive_some() == b"z"
        peer.send(b"in")
        assert await stream.receive_into(bytearray(1)) == 1
        send, receive = stream.split()
        async with closing(send, receive):
            assert await receive.receive_into(bytearray(9)) == 1
            with trio.move_on_after(0):
                await receive.receive_some()
            peer.setblocking(True)
            peer.send(b"more")
            assert await receive.receive_exactly(4) == b"more"
            await send.send_all([b"1", b"2"])
            await send.send_all(b"3")
            assert drain(peer) == b"123"


async def test_what_an_interrupted_receive_had_is_the_receiving_halfs() -> None:
    stream, peer = stream_and_peer()
    async with closing(peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_exactly, 10)
            await until_blocked(stream.socket.fileno())
            peer.send(b"five5")
            await until(lambda: not peer_has(stream), "they were received")
            await until_blocked(stream.socket.fileno())
            nursery.cancel_scope.cancel()
        send, receive = stream.split()
        async with closing(send, receive):
            peer.send(b"rest!")
            assert await receive.receive_exactly(10) == b"five5rest!"


def peer_has(stream: SocketStream) -> bool:
    try:
        return bool(stream.socket._sock.recv(1, socket.MSG_PEEK))  # type: ignore[attr-defined]
    except BlockingIOError:
        return False


@waits_are_ours
@pytest.mark.parametrize("bytes_first", [True, False])
async def test_what_a_destroyed_receive_leaves_is_the_receiving_halfs(bytes_first: bool) -> None:
    """Its operation may be in the kernel still, and gets bytes there."""
    stream, peer = stream_and_peer()
    async with closing(peer):
        call: Any = stream.receive_some()
        await park(call)
        call.close()
        if bytes_first:
            peer.send(b"early")
        send, receive = stream.split()
        if not bytes_first:
            peer.send(b"early")
        async with closing(send, receive):
            assert await receive.receive_exactly(5) == b"early"


async def test_options_stay_as_they_were() -> None:
    left, peer = tcp_sockets()
    stream = SocketStream(left)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    send, receive = stream.split()
    async with closing(send, receive, peer):
        assert send.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0


async def test_after_send_eof() -> None:
    stream, peer = stream_and_peer()
    await stream.send_eof()
    send, receive = stream.split()
    async with closing(send, receive, peer):
        with pytest.raises(trio.ClosedResourceError):
            await send.send_all(b"x")
        await send.aclose()
        peer.send(b"y")
        assert await receive.receive_some() == b"y"


@pytest.mark.parametrize("direction", ["send", "receive"])
async def test_a_stream_in_use_is_not_split(direction: str) -> None:
    left, peer = unix_sockets(TINY)
    stream = SocketStream(left)
    clog(left.fileno())
    async with closing(stream, peer), trio.open_nursery() as nursery:
        if direction == "send":
            nursery.start_soon(stream.send_all, b"x")
        else:
            nursery.start_soon(stream.receive_some)
        await until_blocked(left.fileno())
        with pytest.raises(trio.BusyResourceError):
            stream.split()
        nursery.cancel_scope.cancel()
    assert left.fileno() == -1  # it was not handed over


@pytest.mark.parametrize("half", ["send", "receive"])
async def test_cancelling_a_blocked_half(half: str) -> None:
    left, peer = unix_sockets(TINY)
    send, receive = SocketStream(left).split()
    clog(left.fileno())
    async with closing(send, receive, peer):
        async with trio.open_nursery() as nursery:
            if half == "send":
                nursery.start_soon(send.send_all, b"x")
            else:
                nursery.start_soon(receive.receive_some)
            await until_blocked(left.fileno())
            nursery.cancel_scope.cancel()
        drain(peer)
        await send.send_all(b"on")
        peer.setblocking(True)
        assert peer.recv(2) == b"on"
        peer.send(b"back")
        assert await receive.receive_some() == b"back"
