"""What streams and listeners are made from, what they refuse, and what they do to a descriptor.

Rules: what is refused still belongs to the caller, and is open and usable.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import (
    clog,
    closing,
    drain,
    pipe_streams,
    tcp_sockets,
    unix_sockets,
    until_blocked,
)

import trio_uring
from trio_uring import ReceiveStream, SendStream, SocketListener, SocketStream
from trio_uring._streams.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = [SocketStream, SendStream, ReceiveStream]


# -- taken


@pytest.mark.parametrize(
    "wrap", [lambda sock: sock, trio.socket.from_stdlib_socket], ids=["stdlib", "trio"]
)
@pytest.mark.parametrize("cls", CLASSES)
async def test_sockets(cls: Any, wrap: Callable[[socket.socket], Any]) -> None:
    left, peer = unix_sockets()
    stream = cls(wrap(left))
    async with closing(stream, peer):
        assert isinstance(stream.socket, trio.socket.SocketType)
        if cls is not ReceiveStream:
            await stream.send_all(b"out")
            assert drain(peer) == b"out"
        if cls is not SendStream:
            peer.send(b"in")
            assert await stream.receive_some() == b"in"
        await stream.aclose()
        assert left.fileno() == -1


async def test_a_trio_socket_stays_the_streams_socket() -> None:
    left, peer = unix_sockets()
    sock = trio.socket.from_stdlib_socket(left)
    stream = SocketStream(sock)
    async with closing(stream, peer):
        assert stream.socket is sock


async def test_the_socket_of_a_pipe_is_no_attribute() -> None:
    sender, receiver = pipe_streams()
    async with closing(sender, receiver):
        for stream in (sender, receiver):
            assert not hasattr(stream, "socket")


async def test_it_is_what_trio_says_it_is() -> None:
    assert issubclass(SocketStream, trio.abc.HalfCloseableStream)
    assert issubclass(SendStream, trio.abc.SendStream)
    assert issubclass(ReceiveStream, trio.abc.ReceiveStream)
    assert issubclass(SocketListener, trio.abc.Listener)
    assert not issubclass(SendStream, trio.abc.ReceiveStream)


@pytest.mark.parametrize("cls", [SendStream, ReceiveStream])
@pytest.mark.parametrize("make", [os.pipe, os.openpty], ids=["pipe", "pty"])
async def test_o_nonblock_is_never_set_on_what_others_may_share(
    cls: Any, make: Callable[[], tuple[int, int]]
) -> None:
    """Neither by making a stream nor by an operation, done at once or blocked."""
    read, write = make()
    fd, other = (write, read) if cls is SendStream else (read, write)
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    stream = cls(fd)
    try:
        async with closing(stream):
            if cls is SendStream:
                await stream.send_all(b"x\n")
                if make is os.pipe:
                    clog(fd)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stream.send_all, b"blocked")
                        await until_blocked(fd)
                        assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
                        nursery.cancel_scope.cancel()
            else:
                os.write(other, b"x\n")
                assert (await stream.receive_some()).startswith(b"x")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.receive_some)
                    await until_blocked(fd)
                    assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
                    nursery.cancel_scope.cancel()
            assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
    finally:
        os.close(other)


async def test_tcp_options() -> None:
    left, peer = tcp_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer):
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, b"\1\0\0\0")
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4) == b"\1\0\0\0"
        with pytest.raises(OSError, match="Protocol not available"):
            stream.getsockopt(socket.IPPROTO_TCP, 9999)


LOWAT = 2**20  # TCP_NOTSENT_LOWAT of our streams


def options_of(sock: Any) -> tuple[int, int]:
    return tuple(
        sock.getsockopt(socket.IPPROTO_TCP, name)
        for name in (socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT)
    )


async def test_tcp_options_are_inherited_from_the_listener() -> None:
    """And are not set again: an accepted socket has what the listener had."""
    (listener,) = await trio_uring.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        assert options_of(listener.socket) == (1, LOWAT)
        for theirs in ((1, LOWAT), (0, 12345)):
            for name, value in zip((socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT), theirs):
                listener.socket.setsockopt(socket.IPPROTO_TCP, name, value)
            with socket.create_connection(listener.socket.getsockname()):
                async with await listener.accept() as stream:
                    assert options_of(stream.socket) == theirs
                    assert type(stream.socket) is trio_uring.UringSocket


async def test_options_are_those_of_tcp_sockets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def setsockopt(self: Any, level: int, *_: Any) -> None:
        asked.append((self.family, self.type))

    monkeypatch.setattr(trio_uring.UringSocket, "setsockopt", setsockopt)
    left, right = unix_sockets()
    async with SocketStream(left), SocketStream(right):
        pass
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        Endpoint(trio_uring.UringSocket(udp))
    assert asked == []
    left, right = tcp_sockets()
    async with SocketStream(left), SocketStream(right):
        assert set(asked) == {(socket.AF_INET, socket.SOCK_STREAM)}


@pytest.mark.parametrize("args", [(1, 9, None), (1, 9, 1, 4), (1, 9), (1, 9, "1")])
async def test_setsockopt_refuses_what_trio_refuses(args: Any) -> None:
    left, right = unix_sockets()
    ours, trios = SocketStream(left), trio.SocketStream(trio.socket.from_stdlib_socket(right))
    async with closing(ours, trios):
        with pytest.raises(TypeError):
            trios.setsockopt(*args)
        with pytest.raises(TypeError):
            ours.setsockopt(*args)


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [
        (one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()
    ]


SERVING = ("max_connections", "first_byte_timeout", "idle_timeout", "shutdown")
FUNCTIONS = [
    "open_tcp_stream", "open_tcp_listeners", "serve_tcp", "open_unix_socket",
    "open_ssl_over_tcp_stream", "open_ssl_over_tcp_listeners", "serve_ssl_over_tcp",
]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_of_functions_are_trios(name: str) -> None:
    """But for `options` and what servers have, the last, and `reuse_port`, which listeners have;
    all by name only."""
    ours = shape(getattr(trio_uring, name))
    by_name = inspect.Parameter.KEYWORD_ONLY
    last = ["options", *(SERVING if name.startswith("serve") else ())]
    assert ours[-len(last) :] == [(each, by_name, None) for each in last]
    del ours[-len(last) :]
    extra = ("reuse_port", by_name, False)
    assert (extra in ours) == ("listeners" in name or "serve" in name)
    assert [one for one in ours if one != extra] == shape(getattr(trio, name))


METHODS = [
    "setsockopt",
    "getsockopt",
    "send_eof",
    "aclose",
    "wait_send_all_might_not_block",
    "receive_some",
]


@pytest.mark.parametrize("name", METHODS)
def test_signatures_of_methods_are_trios(name: str) -> None:
    """But for `self`, which is by position only in a method in C."""
    ours = [one for one in shape(getattr(SocketStream, name)) if one[0] != "timeout"]
    assert [(n, k) for n, k, _ in ours[1:]] == [
        (n, k) for n, k, _ in shape(getattr(trio.SocketStream, name))[1:]
    ]


# -- refused


@pytest.mark.parametrize("cls", [*CLASSES, SocketListener])
@pytest.mark.parametrize("what", [None, "5", 5.0, True, object(), b"", [1]])
async def test_wrong_types(cls: Any, what: Any) -> None:
    with pytest.raises(TypeError):
        cls(what)


@pytest.mark.parametrize("cls", [SocketStream, SocketListener])
async def test_descriptors_are_for_one_direction_only(cls: Any) -> None:
    left, right = unix_sockets()
    async with closing(left, right):
        with pytest.raises(TypeError):
            cls(left.fileno())
        left.send(b"still open")
        assert drain(right) == b"still open"


@pytest.mark.parametrize("cls", [*CLASSES, SocketListener])
@pytest.mark.parametrize(
    "wrap", [lambda sock: sock, trio.socket.from_stdlib_socket], ids=["stdlib", "trio"]
)
async def test_datagram_sockets(cls: Any, wrap: Callable[[socket.socket], Any]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="SOCK_STREAM"):
            cls(wrap(sock))
        assert os.fstat(sock.fileno())


@pytest.mark.parametrize("cls", [SendStream, ReceiveStream])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_descriptors_of_other_sockets_stay_the_callers(cls: Any, kind: int) -> None:
    sock = socket.socket(socket.AF_UNIX, kind)
    fd = sock.detach()
    with pytest.raises(ValueError, match="SOCK_STREAM"):
        cls(fd)
    assert os.fstat(fd)  # EBADF: it was closed under the caller
    os.close(fd)


@pytest.mark.parametrize("cls", [SendStream, ReceiveStream])
async def test_files_and_directories(cls: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    directory = os.open(tmp_path, os.O_RDONLY)
    for one in (fd, directory):
        with pytest.raises(ValueError, match="stream socket, a pipe or a FIFO"):
            cls(one)
        os.close(one)  # still the caller's


@pytest.mark.parametrize("cls", [SendStream, ReceiveStream])
@pytest.mark.parametrize("fd", [-1, 2**20])
async def test_descriptors_that_are_not_open(cls: Any, fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        cls(fd)


@pytest.mark.parametrize("cls", CLASSES)
async def test_closed_sockets(cls: Any) -> None:
    left, right = unix_sockets()
    left.close()
    right.close()
    with pytest.raises((OSError, ValueError, trio.ClosedResourceError)):
        cls(left)


@pytest.mark.parametrize("cls", CLASSES)
async def test_tls_sockets(cls: Any) -> None:
    """They have a state of their own, which reading their descriptor would destroy."""
    left, right = unix_sockets()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    wrapped = context.wrap_socket(left, do_handshake_on_connect=False)
    async with closing(wrapped, right):
        with pytest.raises(TypeError):
            cls(wrapped)


async def test_the_wrong_end_of_a_pipe() -> None:
    read, write = os.pipe()
    sender, receiver = SendStream(read), ReceiveStream(write)
    async with closing(sender, receiver):
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await sender.send_all(b"x")
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await receiver.receive_some()


async def test_a_socket_that_is_not_connected() -> None:
    for make in (socket.socket, lambda: socket.create_server(("127.0.0.1", 0))):
        stream = SocketStream(make())
        async with closing(stream):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")


async def test_a_listener_must_listen() -> None:
    for sock in (socket.socket(), *unix_sockets()):
        with sock, pytest.raises(ValueError, match="listening"):
            SocketListener(sock)
