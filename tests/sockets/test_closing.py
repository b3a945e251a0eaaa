"""Closing: who may close a socket, and that tasks waiting on it, or on what is built on it, wake.

Rules: those of support/sockets.py. If a thread closes something, the test has its own run for that.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.ports import lone_port
from support.sockets import Sockets, clog_sender, of_kind, on_both

import trio_uring
import trio_uring.socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType


@on_both
@of_kind
@pytest.mark.parametrize("call", ["recv", "recvmsg", "send", "accept"])
async def test_a_thread_may_not_close_what_a_task_waits_on(
    library: ModuleType, kind: str, call: str
) -> None:
    """Nothing is closed, and the task goes on waiting."""
    with Sockets(library) as sockets:
        if call == "accept":
            if kind not in ("tcp", "tcp6", "unix"):
                return
            sock = await sockets.bound(kind)
            sock.listen()
        else:
            sock, peer = sockets.pair(kind)
            if call == "send" and kind in ("udp", "udp6"):
                return  # never waits
            if call == "send":
                clog_sender(sock, peer)
        arguments = {"accept": (), "send": (b"x",)}.get(call, (1,))
        results = []

        async def wait() -> None:
            results.append(await getattr(sock, call)(*arguments))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="must be called from async context"):
                await trio.to_thread.run_sync(sock.close)
            assert sock.fileno() >= 0
            assert results == []
            if call == "accept":
                client = sockets.new(kind)
                await client.connect(sock.getsockname())
            elif call == "send":
                while not results:
                    await peer.recv(2**20)
            else:
                await peer.send(b"x")
        if call == "accept":
            sockets.take(results[0][0])
        else:
            assert results in ([b"x"], [1], [(b"x", [], 0, None)]) or results[0][0] == b"x"


async def test_a_run_in_another_thread_may_not_close_what_waits_for_a_half_closed_peer() -> None:
    """No poll of the ring's can wait for that one's room: the task waits by trio's own means."""
    with Sockets(trio_uring.socket) as sockets:
        sock, peer = sockets.pair("unix")
        peer.shutdown(trio_uring.socket.SHUT_WR)
        stream = trio_uring.SocketStream(sock)

        async def aclose() -> None:
            with pytest.raises(RuntimeError, match="must be called from async context"):
                await stream.aclose()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(bytes(2**23))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await trio.to_thread.run_sync(trio.run, aclose)
            assert sock.fileno() >= 0
            await stream.aclose()


async def test_a_run_in_another_thread_may_not_close_it_either() -> None:
    with Sockets(trio_uring.socket) as sockets:
        sock, peer = sockets.pair("tcp")
        stream = trio_uring.SocketStream(sock)

        async def close(how: Callable[[], Any]) -> None:
            with pytest.raises(RuntimeError, match="must be called from async context"):
                how()

        async def aclose() -> None:
            with pytest.raises(RuntimeError, match="must be called from async context"):
                await stream.aclose()

        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await stream.receive_some() == b"x"

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            for how in (sock.close, sock.detach, lambda: sock.__exit__(None, None, None)):
                await trio.to_thread.run_sync(trio.run, close, how)
            await trio.to_thread.run_sync(trio.run, aclose)
            assert sock.fileno() >= 0
            await peer.send(b"x")
        await stream.send_all(b"y")  # it was not closed
        assert await peer.recv(1) == b"y"
        await stream.aclose()


@on_both
def test_another_run_closes_what_nobody_waits_on(library: ModuleType) -> None:
    async def use() -> None:
        async def close() -> None:
            left.close()

        with trio.move_on_after(0):
            await left.recv(1)
        await trio.to_thread.run_sync(trio.run, close)
        assert left.fileno() == -1
        assert await right.recv(1) == b""

    left, right = library.socketpair()
    with right:
        trio.run(use)


@on_both
async def test_leaving_a_with_block(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair("tcp")
        with left:
            await left.send(b"x")
        assert left.fileno() == -1
        assert [await right.recv(2), await right.recv(2)] == [b"x", b""]


@pytest.mark.uring_only(
    "where the kernel would keep the socket open; trio's own with block wakes nobody"
)
async def test_leaving_a_with_block_wakes() -> None:
    with Sockets(trio_uring.socket) as sockets:
        left, right = sockets.pair("tcp")

        async def wait(operation: Callable[..., Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await operation(1)

        for receive in ("recv", "recvfrom"):
            left, right = sockets.pair("tcp")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, getattr(left, receive))
                await trio.testing.wait_all_tasks_blocked()
                with left:
                    pass
            assert await right.recv(1) == b""


# -- streams and listeners over trio's own sockets


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", lone_port()))


async def _of_trios() -> trio_uring.SocketListener:
    return trio_uring.SocketListener(trio.socket.from_stdlib_socket(listening()))


async def _of_open_tcp_listeners() -> trio_uring.SocketListener:
    (listener,) = await trio_uring.open_tcp_listeners(lone_port(), host="127.0.0.1")
    return listener


async def _stock() -> Any:
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening()))


@pytest.mark.parametrize("make", [_stock, _of_trios, _of_open_tcp_listeners])
async def test_closing_the_socket_of_a_listener(make: Callable[[], Awaitable[Any]]) -> None:
    """Whoever accepts is woken, and the port is closed."""
    listener = await make()
    address = listener.socket.getsockname()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.socket.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    with trio.testing.assert_checkpoints():
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


@pytest.mark.parametrize(
    "cls", [trio.SocketStream, trio_uring.SocketStream, trio_uring.ReceiveStream]
)
async def test_closing_the_socket_of_a_stream(cls: Any) -> None:
    left, right = trio.socket.socketpair()
    stream = cls(left)
    assert stream.socket is left

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        left.close()
        assert await right.recv(1) == b""
    right.close()


@pytest.mark.parametrize("cls", [trio_uring.SocketStream, trio_uring.ReceiveStream])
async def test_a_receive_of_the_same_pass_reads_nobody_else_s_bytes(cls: Any) -> None:
    """The descriptor's number belongs to another file by the time that the receive would begin."""
    left, right = trio.socket.socketpair()
    stream = cls(left)
    results: list[object] = []

    async def receive() -> None:
        try:
            results.append(await stream.receive_some(10))
        except trio.ClosedResourceError:
            results.append("closed")

    async def swap() -> None:
        left.close()
        os.dup2(other.fileno(), number)

    number = left.fileno()
    stranger, other = socket.socketpair()
    stranger.send(b"a stranger's")
    async with trio.open_nursery() as nursery:  # whichever task trio runs first
        nursery.start_soon(receive)
        nursery.start_soon(swap)
    assert results == ["closed"]
    assert other.recv(100) == b"a stranger's"
    os.close(number)
    for sock in (stranger, other, right):
        sock.close()


async def test_a_trio_socket_becomes_ours_and_stays_the_same() -> None:
    for cls in (trio_uring.SocketStream, trio_uring.SendStream, trio_uring.ReceiveStream):
        left, right = trio.socket.socketpair()
        stream: Any = cls(left)
        assert stream.socket is left
        assert type(left) is trio_uring.UringSocket
        assert type(right) is not trio_uring.UringSocket
        await stream.aclose()
        assert left.fileno() == -1
        right.close()
