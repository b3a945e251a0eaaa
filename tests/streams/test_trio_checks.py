"""trio's own suites for streams, over every kind of descriptor that a stream can have.

Rules: the suites are trio's and are not adapted. A maker here only makes a pair, and a clogged
maker one whose writers block.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import TINY, clog, clog_tcp, fifo_descriptors, tcp_sockets, unix_sockets
from trio.testing import check_half_closeable_stream, check_one_way_stream, check_two_way_stream

from trio_uring import ReceiveStream, SendStream, SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Maker = Callable[[], Awaitable[tuple[Any, Any]]]

STOCK = 7  # clogged pairs: one_way asks for so many


def small_tcp() -> tuple[socket.socket, socket.socket]:
    return tcp_sockets(65536)


def tiny_unix() -> tuple[socket.socket, socket.socket]:
    return unix_sockets(TINY)


SOCKETS = [
    pytest.param(unix_sockets, tiny_unix, id="unix"),
    pytest.param(tcp_sockets, small_tcp, id="tcp"),
]
PIPES = [pytest.param(os.pipe, id="pipe"), pytest.param(fifo_descriptors, id="fifo")]


@contextlib.contextmanager
def makers(
    make: Callable[[], Any], make_small: Callable[[], Any], left_class: Any, right_class: Any
) -> Iterator[tuple[Maker, Maker]]:
    stock: list[tuple[socket.socket, socket.socket]] = []

    async def maker() -> tuple[Any, Any]:
        left, right = make()
        return left_class(left), right_class(right)

    async def clogged() -> tuple[Any, Any]:
        if not stock:  # TCP takes its time to come to rest: that of many together
            stock.extend(make_small() for _ in range(STOCK))
            clog_both_ways(stock)
        left, right = stock.pop()
        return left_class(left), right_class(right)

    yield maker, clogged
    for left, right in stock:
        left.close()
        right.close()


def clog_both_ways(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    directions = [ends for left, right in pairs for ends in ((left, right), (right, left))]
    if pairs[0][0].family == socket.AF_INET:
        clog_tcp(*directions)
    else:
        for sender, _ in directions:
            clog(sender.fileno())


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
    with makers(make, make_small, SocketStream, SocketStream) as both:
        await check_two_way_stream(*both)


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_half_closeable(make: Callable[[], Any], make_small: Callable[[], Any]) -> None:
    with makers(make, make_small, SocketStream, SocketStream) as both:
        await check_half_closeable_stream(*both)


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_one_way_over_sockets(make: Callable[[], Any], make_small: Callable[[], Any]) -> None:
    with makers(make, make_small, SendStream, ReceiveStream) as both:
        await check_one_way_stream(*both)


@pytest.mark.parametrize(("make", "make_small"), SOCKETS)
async def test_one_way_over_descriptors_of_sockets(
    make: Callable[[], Any], make_small: Callable[[], Any]
) -> None:
    def sender(sock: socket.socket) -> SendStream:
        return SendStream(sock.detach())

    def receiver(sock: socket.socket) -> ReceiveStream:
        return ReceiveStream(sock.detach())

    with makers(make, make_small, sender, receiver) as both:
        await check_one_way_stream(*both)


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
