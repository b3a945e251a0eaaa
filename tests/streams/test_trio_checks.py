"""trio's own suites for streams, over every kind of descriptor that a stream can have.

Rules: the suites are trio's and are not adapted. A maker here only makes a pair, and a clogged
maker one whose writers block.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import TINY, clog, clog_tcp, fifo_descriptors, tcp_sockets, unix_sockets
from trio.testing import check_half_closeable_stream, check_one_way_stream, check_two_way_stream

from trio_uring import ReceiveStream, SendStream, SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Maker = Callable[[], Awaitable[tuple[Any, Any]]]


def small_tcp() -> tuple[socket.socket, socket.socket]:
    return tcp_sockets(65536)


def tiny_unix() -> tuple[socket.socket, socket.socket]:
    return unix_sockets(TINY)


SOCKETS = [
    pytest.param(unix_sockets, tiny_unix, id="unix"),
    pytest.param(tcp_sockets, small_tcp, id="tcp"),
]
PIPES = [pytest.param(os.pipe, id="pipe"), pytest.param(fifo_descriptors, id="fifo")]


def makers(
    make: Callable[[], Any], make_small: Callable[[], Any], left_class: Any, right_class: Any
) -> tuple[Maker, Maker]:
    async def maker() -> tuple[Any, Any]:
        left, right = make()
        return left_class(left), right_class(right)

    async def clogged() -> tuple[Any, Any]:
        left, right = make_small()
        for sender, receiver in ((left, right), (right, left)):
            if left.family == socket.AF_INET:
                clog_tcp(sender, receiver)
            else:
                clog(sender.fileno())
        return left_class(left), right_class(right)

    return maker, clogged


def pipe_makers(make: Callable[[], tuple[int, int]]) -> tuple[Maker, Maker]:
    async def maker() -> tuple[Any, Any]:
        read, write = make()
        return SendStream(write), ReceiveStream(read)

    async def clogged() -> tuple[Any, Any]:
        read, write = make()
        clog(write)
        return SendStream(write), ReceiveStream(read)

    return maker, clogged


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_two_way(make: Callable[[], Any], make_small: Callable[[], Any]) -> None:
    await check_two_way_stream(*makers(make, make_small, SocketStream, SocketStream))


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_half_closeable(make: Callable[[], Any], make_small: Callable[[], Any]) -> None:
    await check_half_closeable_stream(*makers(make, make_small, SocketStream, SocketStream))


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_one_way_over_sockets(make: Callable[[], Any], make_small: Callable[[], Any]) -> None:
    await check_one_way_stream(*makers(make, make_small, SendStream, ReceiveStream))


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_one_way_over_descriptors_of_sockets(
    make: Callable[[], Any], make_small: Callable[[], Any]
) -> None:
    def sender(sock: socket.socket) -> SendStream:
        return SendStream(sock.detach())

    def receiver(sock: socket.socket) -> ReceiveStream:
        return ReceiveStream(sock.detach())

    await check_one_way_stream(*makers(make, make_small, sender, receiver))


@pytest.mark.parametrize("make", PIPES)
async def test_one_way_over_pipes(make: Callable[[], tuple[int, int]]) -> None:
    await check_one_way_stream(*pipe_makers(make))


@pytest.mark.parametrize("make", PIPES)
async def test_one_way_over_pipes_that_others_made_nonblocking(
    make: Callable[[], tuple[int, int]],
) -> None:
    def nonblocking() -> tuple[int, int]:
        ends = make()
        for fd in ends:
            os.set_blocking(fd, False)
        return ends

    await check_one_way_stream(*pipe_makers(nonblocking))


async def test_two_pipes_are_a_two_way_stream() -> None:
    async def maker() -> tuple[Any, Any]:
        (left_read, right_write), (right_read, left_write) = os.pipe(), os.pipe()
        return (
            trio.StapledStream(SendStream(left_write), ReceiveStream(left_read)),
            trio.StapledStream(SendStream(right_write), ReceiveStream(right_read)),
        )

    await check_half_closeable_stream(maker, None)


@pytest.mark.parametrize("other_first", [False, True])
async def test_against_trios_own_stream(other_first: bool) -> None:
    async def maker() -> tuple[Any, Any]:
        left, right = tcp_sockets()
        pair = SocketStream(left), trio.SocketStream(trio.socket.from_stdlib_socket(right))
        return pair[::-1] if other_first else pair

    await check_half_closeable_stream(maker, None)
