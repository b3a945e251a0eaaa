"""Behaviour of every network: closing and half-closing, for blocked tasks and for the peer."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
import trio
import trio.testing
from support.networks import (
    ANY_PORT,
    World,
    blocks,
    connect,
    connected,
    everywhere,
    expect,
    socket_of,
)
from support.streams import clog_tcp, closing, receive_all

from trio_uring import NetworkStream

MIB = 1 << 20
STOCK = 7  # clogged connections: a part of what the suite of trio asks for


@everywhere
async def test_close_is_the_end_for_the_peer(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await client.send_all([b"last ", b"words"])
        await client.aclose()
        assert await receive_all(server) == b"last words"
        assert await server.receive_some() == b""  # and stays


@everywhere
async def test_what_a_closed_stream_answers(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await server.send_all(b"never read")
        await client.aclose()
        await client.aclose()
        closed = trio.ClosedResourceError
        await expect(closed, client.send_all, b"x")
        await expect(closed, client.send_all, b"")
        await expect(closed, client.send_all, [])
        await expect(closed, client.send_all, [b"x", b"y"])
        await expect(closed, client.send_all_vectored, [b"x"])
        await expect(closed, client.wait_send_all_might_not_block)
        await expect(closed, client.send_eof)
        await expect(closed, client.receive_some)
        await expect(closed, client.receive_some, 1)
        await expect(closed, client.receive_into, bytearray(9))
        await expect(closed, client.receive_exactly, 1)
        await expect(closed, client.receive_exactly, 0)
        await expect(closed, client.receive_until, b"\n", 100)
        with pytest.raises(closed):
            client.peek()
        assert client.remote_address == server.local_address  # for the log


@everywhere
async def test_close_drops_what_was_buffered(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await server.send_all(b"0123456789")
        assert await client.receive_exactly(1) == b"0"
        await client.aclose()
        await expect(trio.ClosedResourceError, client.receive_some)


@everywhere
@pytest.mark.parametrize("side", [0, 1])
async def test_a_stream_closes_in_a_cancelled_scope(world: World, side: int) -> None:
    async with connected(world.make()) as pair:
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair[side].aclose()
        assert scope.cancelled_caught
        await expect(trio.ClosedResourceError, pair[side].receive_some)
        assert await pair[1 - side].receive_some() == b""


@everywhere
async def test_closing_wakes_a_blocked_receive(world: World) -> None:
    async with connected(world.make()) as (client, server):
        for call, args in ((client.receive_some, ()), (client.receive_exactly, (5,))):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, trio.ClosedResourceError, call, *args)
                await world.quiet()
                await client.aclose()
        assert await server.receive_some() == b""


@everywhere
async def test_closing_wakes_a_blocked_receive_that_has_a_part(world: World) -> None:
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, client.receive_exactly, 100)
        await server.send_all(b"some")
        await world.quiet()
        await client.aclose()
    await expect(trio.ClosedResourceError, client.receive_some)


@everywhere
async def test_closing_wakes_a_blocked_send(world: World) -> None:
    """The peer gets what was sent, and then the end or a reset."""
    async with connected(world.make()) as (client, server):
        data = blocks(64 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, trio.ClosedResourceError, client.send_all, data)
            await world.quiet()
            await client.aclose()
        got = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in server:
                got += chunk
        assert len(got) < 64 * MIB
        assert got == b"".join(data)[: len(got)]


@everywhere
async def test_both_ends_close_at_once(world: World) -> None:
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        nursery.start_soon(server.aclose)


# -- half-close


@everywhere
@pytest.mark.parametrize("side", [0, 1])
async def test_each_end_can_stop_sending_first(world: World, side: int) -> None:
    async with connected(world.make()) as pair:
        first, second = pair[side], pair[1 - side]
        await first.send_all(b"question")
        await first.send_eof()
        assert await receive_all(second) == b"question"
        await expect(trio.ClosedResourceError, first.send_all, b"more")
        await expect(trio.ClosedResourceError, first.send_all, [b"more", b"more"])
        await expect(trio.ClosedResourceError, first.send_all, b"")
        await first.send_eof()  # twice is allowed
        await second.send_all([b"ans", b"wer"])
        await second.send_eof()
        assert await receive_all(first) == b"answer"


@everywhere
async def test_trios_own_suite(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)

    stock: list[tuple[NetworkStream, NetworkStream]] = []

    async def maker() -> Any:
        return await connect(network, listener)

    async def clogged() -> Any:
        if not stock:  # TCP takes its time to come to rest: that of many together
            stock.extend([await connect(network, listener) for _ in range(STOCK)])
            await clog(world, stock)
        return stock.pop()

    # And once for each transport, and once through wrappers.
    clogs = world.is_simulated or len(world.kind.wrappers) != 1
    async with closing(listener):
        await trio.testing.check_half_closeable_stream(maker, clogged if clogs else None)
        async with closing(*(end for pair in stock for end in pair)):
            pass


async def clog(world: World, pairs: list[tuple[NetworkStream, NetworkStream]]) -> None:
    """Fills both directions until nothing more goes."""
    directions = [ends for left, right in pairs for ends in ((left, right), (right, left))]
    if world.is_simulated:
        for sender, _ in directions:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, blocks(MIB))
                await world.quiet()
                nursery.cancel_scope.cancel()
        return
    for sender, receiver in directions:
        for end, option in ((sender, socket.SO_SNDBUF), (receiver, socket.SO_RCVBUF)):
            socket_of(end).setsockopt(socket.SOL_SOCKET, option, 65536)
    clog_tcp(*((socket_of(sender), socket_of(receiver)) for sender, receiver in directions))
