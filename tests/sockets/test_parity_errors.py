"""Errors of sockets, the same with trio's and with ours: type and errno, a checkpoint, and no
buffer left exported.

Rules: those of support/sockets.py. What is expected is written out, so that both cannot be wrong in
the same way.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from types import ModuleType
from typing import Any

import pytest
import trio
from support.ports import lone_port
from support.sockets import Sockets, clog_sender, of_kind, on_both, told
from support.streams import until
from trio.testing import assert_checkpoints


async def fails(operation: Any, *arguments: Any) -> tuple[type[BaseException], object]:
    with assert_checkpoints():
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await operation(*arguments)
    return told(caught.value)


@on_both
async def test_connecting_to_nobody(library: ModuleType, tmp_path) -> None:
    with Sockets(library) as sockets:
        for kind in ("tcp", "tcp6"):
            host = "::1" if kind == "tcp6" else "127.0.0.1"
            address = (host, lone_port(host))
            sock = sockets.new(kind)
            assert await fails(sock.connect, address) == (
                ConnectionRefusedError,
                errno.ECONNREFUSED,
            )
            assert sock.fileno() >= 0
        sock = sockets.new("unix")
        assert await fails(sock.connect, str(tmp_path / "none")) == (
            FileNotFoundError,
            errno.ENOENT,
        )
        assert await fails(sock.connect, "x" * 200) == (OSError, None)
        assert await fails(sockets.new("tcp").connect, ("255.255.255.255", 9)) == (
            OSError,
            errno.ENETUNREACH,
        )
        assert await fails(sockets.new("udp").connect, ("255.255.255.255", 9)) == (
            PermissionError,
            errno.EACCES,
        )
        left, right = sockets.pair("tcp")
        assert await fails(left.connect, right.getsockname()) == (OSError, errno.EISCONN)


@on_both
async def test_addresses_that_are_none(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        udp, tcp6 = sockets.new("udp"), sockets.new("tcp6")
        for operation in (udp.connect, lambda address: udp.sendto(b"x", address)):
            with pytest.raises(ValueError, match="tuple"):
                await operation("127.0.0.1")
            assert await fails(operation, ("127.0.0.1", 70000)) == (OverflowError, None)
            assert await fails(operation, ("127.0.0.1", -1)) == (OverflowError, None)
        with pytest.raises(ValueError, match="tuple"):
            await tcp6.connect(("::1",))
        assert await fails(tcp6.connect, ("::1", 1, 2**21)) == (OverflowError, None)
        with pytest.raises((TypeError, ValueError)):
            await udp.sendto(b"x")


@on_both
async def test_sockets_that_are_not_connected(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        tcp, udp, unix = sockets.new("tcp"), sockets.new("udp"), sockets.new("unix-dgram")
        assert await fails(tcp.send, b"x") == (BrokenPipeError, errno.EPIPE)
        assert await fails(tcp.recv, 1) == (OSError, errno.ENOTCONN)
        assert await fails(tcp.recv_into, bytearray(1)) == (OSError, errno.ENOTCONN)
        assert await fails(tcp.accept) == (OSError, errno.EINVAL)
        assert await fails(udp.send, b"x") == (OSError, errno.EDESTADDRREQ)
        assert await fails(udp.accept) == (OSError, errno.EOPNOTSUPP)
        assert await fails(unix.send, b"x") == (OSError, errno.ENOTCONN)


@on_both
async def test_a_refused_datagram(library: ModuleType) -> None:
    """The error comes to whoever uses the socket next, also to a receive that waits already."""
    with Sockets(library) as sockets:
        left, right = sockets.pair("udp")
        right.close()
        await left.send(b"x")
        assert await fails(left.recv, 10) == (ConnectionRefusedError, errno.ECONNREFUSED)
        found = []

        async def receive() -> None:
            found.append(await fails(left.recvmsg, 10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await left.send(b"x")
        assert found == [(ConnectionRefusedError, errno.ECONNREFUSED)]
        await left.send(b"x")
        assert await fails(left.send, b"x") == (ConnectionRefusedError, errno.ECONNREFUSED)


@on_both
async def test_broken_connections(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair("tcp")
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        right.close()
        assert await fails(left.recv, 1) == (ConnectionResetError, errno.ECONNRESET)
        assert await fails(left.send, b"x") == (BrokenPipeError, errno.EPIPE)
        assert await left.recv(1) == b""


@on_both
@of_kind
async def test_messages_that_are_too_large(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, _ = sockets.pair(kind)
        assert await fails(left.sendmsg, [b"x"] * 1025) == (OSError, errno.EMSGSIZE)
        if kind in ("udp", "udp6", "unix-dgram", "seqpacket"):
            assert await fails(left.send, bytes(2**24)) == (OSError, errno.EMSGSIZE)


@pytest.mark.cpython_only("PyPy takes other wrong arguments")
@on_both
@of_kind
async def test_arguments(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        await left.send(b"data")
        buffer, gaps = bytearray(10), memoryview(bytearray(10))[::2]
        for call, *arguments in [
            ("recv", -1), ("recvfrom", -1), ("recvmsg", -1), ("recvmsg", 1, -1),
            ("recv_into", buffer, -1), ("recv_into", buffer, 11), ("recvfrom_into", buffer, -1),
            ("recvfrom_into", buffer, 11), ("recvmsg_into", [buffer], -1),
        ]:  # fmt: skip
            assert await fails(getattr(right, call), *arguments) == (ValueError, None), call
        for call, *arguments in [
            ("recv", "1"), ("recv", None), ("recv", 1.0), ("recv", 1, "0"),
            ("recv_into", b"read-only"), ("recv_into", "text"), ("recvfrom", None),
            ("recvfrom_into", b"read-only"), ("recvmsg", None), ("recvmsg_into", buffer),
            ("recvmsg_into", [b"read-only"]), ("recvmsg_into", None), ("send", "text"),
            ("send", 5), ("send", b"x", "0"), ("sendmsg", b"x"), ("sendmsg", ["text"]),
            ("sendmsg", None), ("sendmsg", [b"x"], [1]), ("sendmsg", [b"x"], [("a", 1, b"")]),
            ("sendmsg", [b"x"], [(1, 1, 5)]),
        ]:  # fmt: skip
            found = await fails(getattr(right, call), *arguments)
            assert found in [(TypeError, None)], (call, arguments)
        for call, argument in [("send", gaps), ("sendmsg", [gaps])]:
            assert await fails(getattr(right, call), argument) == (BufferError, None), call
        for call, argument in [
            ("recv_into", gaps),
            ("recvfrom_into", gaps),
            ("recvmsg_into", [gaps]),
        ]:
            assert await fails(getattr(right, call), argument) == (TypeError, None), call
        assert await fails(right.recv, 1, 2**31) == (OverflowError, None)
        assert await fails(right.send, b"x", 2**40) == (OverflowError, None)
        assert await fails(right.sendmsg, [b"x"], [(2**40, 1, b"")]) == (OverflowError, None)
        buffer.append(0)  # BufferError if it were still exported
        assert await right.recv(10) == b"data"


@on_both
async def test_errors_keep_no_buffer(library: ModuleType) -> None:
    """While the exception, with its traceback and the frames in it, is there."""
    with Sockets(library) as sockets:
        sock, buffer = sockets.new("tcp"), bytearray(5)
        for call, *arguments in [
            ("recv_into", buffer, 6), ("recv_into", buffer), ("send", buffer),
            ("sendmsg", [buffer, "x"]), ("recvmsg_into", [buffer, b"x"]),
            ("recvfrom_into", buffer), ("sendmsg", [buffer]),
        ]:  # fmt: skip
            with pytest.raises((ValueError, TypeError, OSError)) as caught:
                await getattr(sock, call)(*arguments)
            buffer.append(0)
            del buffer[5:]
            del caught


@on_both
@of_kind
async def test_a_closed_socket(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        left.close()
        left.close()
        for call, *arguments in [
            ("recv", 1),
            ("send", b"x"),
            ("recvmsg", 1),
            ("sendmsg", [b"x"]),
            ("accept",),
        ]:
            assert await fails(getattr(left, call), *arguments) == (OSError, errno.EBADF), call
        os.close(right.detach())
        assert await fails(right.recv, 1) == (OSError, errno.EBADF)


@on_both
@of_kind
@pytest.mark.parametrize(
    "call", ["recv", "recv_into", "recvmsg", "recvfrom", "send", "sendmsg", "wait_writable"]
)
async def test_closing_wakes(library: ModuleType, kind: str, call: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        buffer = bytearray(10)
        arguments = {
            "recv_into": (buffer,),
            "send": (buffer,),
            "sendmsg": ([buffer],),
            "wait_writable": (),
        }
        if call in ("send", "sendmsg", "wait_writable"):
            if kind in ("udp", "udp6"):
                return  # it always takes more
            clog_sender(left, right)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_closed, getattr(left, call), arguments.get(call, (10,)))
            await trio.testing.wait_all_tasks_blocked()
            left.close()
        buffer.append(0)


async def fails_closed(operation: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await operation(*arguments)


@on_both
async def test_closing_wakes_an_accept(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        server = await sockets.bound("tcp")
        server.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_closed, server.accept, ())
            await trio.testing.wait_all_tasks_blocked()
            server.close()


@on_both
@of_kind
async def test_two_tasks_in_one_direction(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        buffer = bytearray(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(right.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            for call, *arguments in [
                ("recv", 1),
                ("recv_into", buffer),
                ("recvmsg", 1),
                ("recvfrom", 1),
            ]:
                with pytest.raises(trio.BusyResourceError):
                    await getattr(right, call)(*arguments)
            assert await right.send(b"the other direction is free") == 27
            await left.send(b"x")
        buffer.append(0)


@on_both
@of_kind
async def test_cancelled_before_it_began(library: ModuleType, kind: str) -> None:
    """Nothing is sent, nothing is received."""
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        await left.send(b"data")
        with trio.CancelScope() as scope:
            scope.cancel()
            for call, *arguments in [
                ("recv", 1),
                ("recvmsg", 1),
                ("send", b"x"),
                ("sendmsg", [b"x"]),
                ("recv_into", bytearray(1)),
            ]:
                with pytest.raises(trio.Cancelled):
                    await getattr(right, call)(*arguments)
        assert await right.recv(10) == b"data"
        assert not left.is_readable()


@on_both
@of_kind
async def test_cancelled_while_it_waits(library: ModuleType, kind: str) -> None:
    with Sockets(library) as sockets:
        left, right = sockets.pair(kind)
        for call, *arguments in [
            ("recv", 9),
            ("recvmsg", 9, 99),
            ("recvfrom", 9),
            ("recv_into", bytearray(9)),
            ("recv", 2**20),
        ]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(getattr(right, call), *arguments)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert nursery.cancel_scope.cancelled_caught
            await left.send(b"data")
            assert await right.recv(10) == b"data"


@on_both
async def test_a_cancelled_connect_closes(library: ModuleType) -> None:
    with Sockets(library) as sockets:
        server = await sockets.bound("tcp")
        server.listen(0)
        waiting = [sockets.new("tcp") for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for sock in waiting:
                nursery.start_soon(sock.connect, server.getsockname())
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert sum(sock.fileno() == -1 for sock in waiting) >= 1
        sock = sockets.new("tcp")
        with trio.CancelScope() as scope:
            scope.cancel()
            await sock.connect(server.getsockname())
        assert sock.fileno() == -1


def queued(server: Any) -> int:
    """Connections that wait to be accepted."""
    info = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int.from_bytes(info[24:28], sys.byteorder)  # tcpi_unacked


@on_both
async def test_no_way_there(library: ModuleType) -> None:
    """ETIMEDOUT, told by the kernel after TCP_USER_TIMEOUT or the first attempts."""
    with Sockets(library) as sockets:
        server = await sockets.bound("tcp")
        server.listen(0)
        room = 1 + (sys.implementation.name == "pypy")  # whose listen(0) takes one more
        for _ in range(room):
            await sockets.new("tcp").connect(server.getsockname())
        await until(lambda: queued(server) == room, "the backlog is full")
        late = sockets.new("tcp")
        late.setsockopt(socket.IPPROTO_TCP, 18, 100)  # TCP_USER_TIMEOUT, in milliseconds
        late.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        found = []

        async def connect() -> None:
            found.append(await fails(late.connect, server.getsockname()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
        assert found == [(TimeoutError, errno.ETIMEDOUT)]
