"""Behaviour of every network: cancels, timeouts and collisions at any moment.

Rules: what goes in must come out, by count and checksum. The world's seed (TRIO_URING_SEED) decides
who is cancelled and when; a loop ends after a number of cancels.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.networks import (
    ANY_PORT,
    BLOCK,
    World,
    blocks,
    connected,
    digest_of,
    everywhere,
    expect,
)
from support.streams import closing
from trio.testing import assert_checkpoints

from trio_uring import receive_frame, send_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_uring import NetworkStream

MIB = 1 << 20
CANCELS = 150  # that struck, of each side


async def cancelled_at_random(world: World, step: Callable[[], Awaitable[None]]) -> bool:
    """Runs `step`, and perhaps cancels it after a while. Returns whether the cancel struck."""
    async with trio.open_nursery() as nursery:
        if world.random.random() < 0.9:
            nursery.start_soon(cancel_later, world, nursery.cancel_scope)
        await step()
        nursery.cancel_scope.cancel()
        return False
    return True


async def cancel_later(world: World, scope: trio.CancelScope) -> None:
    await world.pause()
    scope.cancel()


class Receiver:
    """Receives in all ways, and keeps the sum of what it was given."""

    def __init__(self, world: World, stream: NetworkStream) -> None:
        self.random = world.random
        self.stream = stream
        self.count = 0
        self.digest = hashlib.blake2b()

    def add(self, data: Any) -> None:
        self.digest.update(data)
        self.count += len(data)

    async def step(self) -> None:
        how, stream = self.random.randrange(5), self.stream
        if how == 0:
            into = bytearray(self.random.choice((3, 5000, 100_000)))
            count = await stream.receive_into(into)
            self.add(into[:count])
        elif how == 1:
            self.add(await stream.receive_exactly(self.random.choice((3, 3000, 70_000))))
        elif how == 2:
            with contextlib.suppress(trio.TooSlowError):
                self.add(await stream.receive_exactly(20_000, timeout=self.random.random() / 1000))
        else:
            self.add(await stream.receive_some(self.random.choice((None, 7, 4000, 65536))))


@everywhere
@pytest.mark.parametrize("buffer_size", [65536, 100, 0])
async def test_cancelled_receives_lose_nothing(world: World, buffer_size: int) -> None:
    sent = hashlib.blake2b()
    sent_count = 0
    async with connected(world.make(read_buffer_size=buffer_size)) as (client, server):
        receiver = Receiver(world, server)
        struck = 0

        async def send() -> None:
            nonlocal sent_count
            while struck < CANCELS:
                start, size = (
                    world.random.randrange(1 << 19),
                    world.random.choice((1, 60, 700, 5000, 40_000)),
                )
                await client.send_all(
                    [BLOCK[start : start + size // 2], BLOCK[start + size // 2 : start + size]]
                )
                sent.update(BLOCK[start : start + size])
                sent_count += size
                await world.pause(10)
            tail = BLOCK[:70_000]  # whatever exact read is waiting gets its fill
            await client.send_all(tail)
            sent.update(tail)
            sent_count += len(tail)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while struck < CANCELS:
                struck += await cancelled_at_random(world, receiver.step)
            async for chunk in server:
                receiver.add(chunk)
    assert (receiver.count, receiver.digest.hexdigest()) == (sent_count, sent.hexdigest())


@everywhere
async def test_cancelled_sends_say_what_went(world: World) -> None:
    """After each one the sender goes on with the first byte that did not go. That is over when all
    has gone, and a cancel has struck."""
    total = (2 if world.is_simulated else 24) * MIB
    data = b"".join(blocks(total))
    sent = hashlib.blake2b()
    async with connected(world.make()) as (client, server):
        gone = struck = 0

        async def send_some() -> None:
            start = gone % total
            size = min(total - start, world.random.choice((100, 70_000, 3 * MIB)))
            rest = memoryview(data)[start : start + size]
            middle = world.random.randrange(size + 1)
            how = world.random.randrange(3)
            if how == 0:
                await client.send_all(rest)
            elif how == 1:
                await client.send_all([rest[:middle], b"", rest[middle:]])
            else:
                await client.send_all_vectored(
                    iter([rest[:middle], rest[middle:]]), timeout=math.inf
                )
            assert client.bytes_sent == size

        async def send() -> None:
            nonlocal gone, struck
            while gone < total or not struck:
                started = False

                async def step() -> None:
                    nonlocal started
                    started = True
                    await send_some()

                struck += await cancelled_at_random(world, step)
                if started:
                    start = gone % total
                    sent.update(memoryview(data)[start : start + client.bytes_sent])
                    gone += client.bytes_sent
                await world.pause(3)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            got = hashlib.blake2b()
            async for chunk in server:
                got.update(chunk)
                await world.pause(3)
    assert got.hexdigest() == sent.hexdigest()


@everywhere
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_an_interrupted_send_has_sent_exactly_a_prefix(world: World, how: str) -> None:
    data = blocks(64 * MIB)
    async with connected(world.make()) as (client, server):
        if how == "cancel":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, data)
                await world.quiet()
                nursery.cancel_scope.cancel()
        else:
            with pytest.raises(trio.TooSlowError):
                await client.send_all(data, timeout=0.02)
        gone = client.bytes_sent
        assert 0 < gone < 64 * MIB
        got = hashlib.blake2b()
        count = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_tail, client)
            while count < gone:
                chunk = await server.receive_some(gone - count)
                count += len(chunk)
                got.update(chunk)
            assert got.hexdigest() == digest_of(data, gone)
            assert await server.receive_exactly(4) == b"tail"
            assert await server.receive_some() == b""


async def send_tail(stream: NetworkStream) -> None:
    await stream.send_all(b"tail")
    assert stream.bytes_sent == 4
    await stream.send_eof()


@everywhere
async def test_a_call_in_a_cancelled_scope_does_nothing(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await client.send_all(b"0123456789")
        assert await server.receive_exactly(1) == b"0"
        for call, args in (
            (client.send_all, (b"lost?",)),
            (client.send_all, ([b"lost", b"?"],)),
            (client.send_all_vectored, ([b"lost?"],)),
            (client.send_eof, ()),
            (server.receive_some, ()),
            (server.receive_some, (3,)),
            (server.receive_exactly, (3,)),
            (server.receive_exactly, (30,)),
            (server.receive_until, (b"5", 20)),
            (server.receive_into, (bytearray(3),)),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call(*args)  # type: ignore[operator]
            assert scope.cancelled_caught
        await client.send_all(b"end")
        assert await server.receive_exactly(12) == b"123456789end"


# -- collisions


@everywhere
async def test_one_task_receives_at_a_time(world: World) -> None:
    async with connected(world.make()) as (client, server):
        for size in (1, 100_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.receive_exactly, size)
                await world.quiet()
                busy = trio.BusyResourceError
                await expect(busy, server.receive_some)
                await expect(busy, server.receive_some, 5)
                await expect(busy, server.receive_exactly, 5)
                await expect(busy, server.receive_into, bytearray(5))
                await expect(busy, server.receive_until, b"x", 5)
                await expect(busy, receive_frame, server)
                await server.send_all(b"the other direction is free")
                await client.send_all(bytes(size))
        assert server.peek() == b""
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"


@everywhere
async def test_one_task_sends_at_a_time(world: World) -> None:
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, blocks(64 * MIB))
        await world.quiet()
        busy = trio.BusyResourceError
        await expect(busy, client.send_all, b"x")
        await expect(busy, client.send_all, [b"x", b"y"])
        await expect(busy, client.send_all, b"")
        await expect(busy, client.send_all_vectored, [b"x", b"y"])
        await expect(busy, client.wait_send_all_might_not_block)
        await expect(busy, client.send_eof)
        await expect(busy, send_frame, client, b"x")
        await server.send_all(b"the other direction is free")
        assert await client.receive_exactly(27) == b"the other direction is free"
        nursery.cancel_scope.cancel()


# -- checkpoints


@everywhere
async def test_every_call_is_a_checkpoint(world: World) -> None:
    network = world.make()
    with assert_checkpoints():
        listener = await network.bind(ANY_PORT)
    with assert_checkpoints():
        client = await network.dial(listener.local_address)
    with assert_checkpoints():  # the connection is there already
        server = await listener.accept()
    async with closing(listener, client, server):
        for call, args in (
            (client.wait_send_all_might_not_block, ()),
            (client.send_all, (b"0123456789\n",)),
            (client.send_all, ([b"abc", b"def"],)),
            (client.send_all, (b"",)),
            (client.send_all, ([],)),
            (client.send_all, ([b"", bytearray()],)),
            (client.send_all_vectored, ([],)),
            (client.send_all_vectored, (iter([b"last\n"]),)),
            (server.receive_some, (1,)),
            (server.receive_some, (1,)),
            (server.receive_exactly, (0,)),
            (server.receive_exactly, (2,)),
            (server.receive_into, (bytearray(1),)),
            (server.receive_until, (b"\n", 100)),
            (server.receive_until, (b"\n", 100)),
            (client.send_eof, ()),
            (client.send_eof, ()),
            (server.receive_some, ()),
            (server.receive_some, ()),
            (server.receive_exactly, (0,)),
            (server.receive_into, (bytearray(1),)),
            (client.aclose, ()),
            (client.aclose, ()),
            (listener.aclose, ()),
            (listener.aclose, ()),
        ):
            with assert_checkpoints():
                await call(*args)  # type: ignore[operator]


@everywhere
async def test_calls_with_a_timeout_are_checkpoints(world: World) -> None:
    async with connected(world.make(read_timeout=30, write_timeout=30)) as (client, server):
        for timeout in (None, 10, math.inf):
            for data in (b"abcdef", [b"abc", b"def"], b"", []):
                with assert_checkpoints():
                    await client.send_all(data, timeout=timeout)
            with assert_checkpoints():
                await server.receive_some(1, timeout=timeout)
            with assert_checkpoints():
                await server.receive_exactly(0, timeout=timeout)
            with assert_checkpoints():
                assert len(await server.receive_exactly(11, timeout=timeout)) == 11
