"""Behaviour of every network: what is sent, in which buffers, and how it arrives."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.networks import (
    ANY_PORT,
    BLOCK,
    Sum,
    World,
    blocks,
    connect,
    connected,
    digest_of,
    everywhere,
    expect,
)
from support.streams import closing, receive_all

from trio_uring import (
    FrameStream,
    FrameTooLarge,
    IncompleteReadError,
    receive_frame,
    send_all_vectored,
    send_frame,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 1 << 20

BUFFERS: dict[str, Callable[[], Any]] = {
    "one of bytes": lambda: [b"bytes"],
    "empty ones": lambda: [
        b"",
        b"a",
        b"",
        bytearray(),
        memoryview(b""),
        b"b",
        array.array("I"),
        b"",
    ],
    "none": list,
    "only empty ones": lambda: [b"", bytearray()],
    "of all kinds": lambda: [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[2:-2],
        array.array("I", range(99)),
    ],
    "a tuple": lambda: (b"prefix", b"payload"),
    "two dimensions": lambda: [
        memoryview(bytes(range(120))).cast("B", (10, 12)),
        memoryview(bytes(16)).cast("d"),
    ],
    "3,000": lambda: [BLOCK[7 * i : 7 * i + i % 7] for i in range(3000)],
    "large and small": lambda: [b"head", BLOCK[:300_000], b"", bytearray(BLOCK[:100_000]), b"tail"],
}
ONE_BUFFER = [
    b"bytes",
    bytearray(b"bytearray"),
    memoryview(b"memoryview"),
    array.array("h", [1, -2, 3]),
    b"",
]


def joined(buffers: Any) -> bytes:
    return b"".join(memoryview(item).tobytes() for item in buffers)


async def through(world: World, send: Callable[[Any], Awaitable[None]]) -> bytes:
    """What arrives of what `send(stream)` sends."""
    got = b""
    async with connected(world.make()) as (client, server):

        async def receive() -> None:
            nonlocal got
            got = await receive_all(server)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await send(client)
            await client.send_eof()
    return got


@everywhere
@pytest.mark.parametrize("name", BUFFERS)
async def test_buffers_arrive_joined_and_in_order(world: World, name: str) -> None:
    whole = joined(BUFFERS[name]())

    async def send(stream: Any) -> None:
        await stream.send_all(BUFFERS[name]())
        assert stream.bytes_sent == len(whole)
        await stream.send_all_vectored(BUFFERS[name]())
        assert stream.bytes_sent == len(whole)
        await stream.send_all_vectored(iter(BUFFERS[name]()))
        assert stream.bytes_sent == len(whole)
        await send_all_vectored(stream, (item for item in BUFFERS[name]()))
        assert stream.bytes_sent == len(whole)

    assert await through(world, send) == whole * 4


@everywhere
@pytest.mark.parametrize(
    "data", ONE_BUFFER, ids=lambda data: f"{type(data).__name__} of {len(data)}"
)
async def test_one_buffer(world: World, data: Any) -> None:
    async def send(stream: Any) -> None:
        await stream.send_all(data)
        assert stream.bytes_sent == memoryview(data).nbytes

    assert await through(world, send) == memoryview(data).tobytes()


@everywhere
@pytest.mark.parametrize(
    "bad", ["text", 7, None, ["text"], [b"fine", 7], [b"fine", None], [[b"nested"]]], ids=repr
)
async def test_what_is_no_buffer_sends_nothing(world: World, bad: Any) -> None:
    async def send(stream: Any) -> None:
        await expect(TypeError, stream.send_all, bad)
        if isinstance(bad, list):
            await expect(TypeError, stream.send_all_vectored, bad)
            await expect(TypeError, send_all_vectored, stream, iter(bad))
        await stream.send_all(b"after")

    assert await through(world, send) == b"after"


@everywhere
@pytest.mark.parametrize(
    "one",
    ["text", b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), 7],
    ids=lambda one: type(one).__name__,
)
async def test_a_list_of_buffers_is_not_one_buffer(world: World, one: Any) -> None:
    async def send(stream: Any) -> None:
        await expect(TypeError, stream.send_all_vectored, one)
        await expect(TypeError, send_all_vectored, stream, one)
        await stream.send_all(b"after")

    assert await through(world, send) == b"after"


@everywhere
async def test_buffers_are_the_callers_again_after_the_call(world: World) -> None:
    buffers = [bytearray(b"0123456789"), bytearray(50_000)]

    async def send(stream: Any) -> None:
        for call in (stream.send_all, stream.send_all_vectored):
            await call(buffers)
            for buffer in buffers:
                buffer.append(0)
        await stream.send_all(buffers[0])
        buffers[0].clear()

    assert len(await through(world, send)) == 10 + 50_000 + 11 + 50_001 + 12


@everywhere
async def test_large_data(world: World) -> None:
    """32 MiB in one call (2 MiB in a simulation), while as much comes back."""
    size = (2 if world.is_simulated else 32) * MIB + 17
    whole = digest_of(blocks(size))
    async with connected(world.make()) as (client, server):
        sums = Sum(), Sum()

        async def send(stream: Any) -> None:
            await stream.send_all(blocks(size))
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sums[0].add_all, server)
            nursery.start_soon(sums[1].add_all, client)
            nursery.start_soon(send, client)
            nursery.start_soon(send, server)
        assert [(total.count, total.digest()) for total in sums] == [(size, whole)] * 2


@everywhere
async def test_one_large_buffer_into_one_large_buffer(world: World) -> None:
    size = (1 if world.is_simulated else 8) * MIB
    data, into = BLOCK * (size // MIB), bytearray(size)
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        count = 0
        while count < size:
            with memoryview(into)[count:] as rest:
                count += await server.receive_into(rest)
        assert into == data


@everywhere
async def test_backpressure(world: World) -> None:
    """A peer that does not read stops the sender, before all of a lot is sent; then it goes on."""
    size = 48 * MIB if not world.is_simulated else MIB
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:
        done = trio.Event()

        async def send() -> None:
            await client.send_all(blocks(size))
            done.set()

        nursery.start_soon(send)
        await world.quiet()
        assert not done.is_set()
        assert 0 < client.bytes_sent < size
        total = Sum()
        while total.count < size:
            total.add(await server.receive_some())
        await done.wait()
        assert total.digest() == digest_of(blocks(size))


@everywhere
async def test_wait_send_all_might_not_block(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await client.wait_send_all_might_not_block()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, blocks(64 * MIB))
            await world.quiet()
            await expect(trio.BusyResourceError, client.wait_send_all_might_not_block)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            total = Sum()
            nursery.start_soon(total.add_all, server)
            await client.wait_send_all_might_not_block()
            nursery.cancel_scope.cancel()


# -- frames


@everywhere
@pytest.mark.parametrize("prefix", ["u32be", "varint"])
async def test_frames(world: World, prefix: Any) -> None:
    payloads = [b"", b"one", BLOCK[:200_000], b"x" * 127, b"x" * 128, b"", bytes(70_000)]
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            for payload in payloads:
                await send_frame(client, payload, prefix=prefix)
                await send_frame(client, [payload[:5], bytearray(payload[5:]), b""], prefix=prefix)
            await expect(FrameTooLarge, send_frame, client, bytes(11), 10)
            await client.send_eof()

        nursery.start_soon(send)
        for payload in payloads:
            assert await receive_frame(server, prefix=prefix) == payload
            assert await receive_frame(server, prefix=prefix) == payload
        with pytest.raises(IncompleteReadError) as caught:
            await receive_frame(server, prefix=prefix)
        assert caught.value.partial == b""


@everywhere
async def test_a_frame_is_read_in_spite_of_cancels(world: World) -> None:
    async with connected(world.make()) as (client, server), trio.open_nursery() as nursery:

        async def send_slowly() -> None:
            for number in range(20):
                frame = (300).to_bytes(4, "big") + bytes([number]) * 300
                cut = world.random.randrange(len(frame))
                await client.send_all(frame[:cut])
                await world.pause()
                await client.send_all(frame[cut:])

        nursery.start_soon(send_slowly)
        for number in range(20):
            frame = None
            while frame is None:
                with trio.move_on_after(world.random.random() / 1000):
                    frame = await receive_frame(server, 300)
            assert frame == bytes([number]) * 300


@everywhere
async def test_a_frame_that_is_too_large_stays_where_it_is(world: World) -> None:
    async with connected(world.make()) as (client, server):
        await send_frame(client, b"0123456789")
        for _ in range(2):
            with pytest.raises(FrameTooLarge):
                await receive_frame(server, 9)
        assert await receive_frame(server, 10) == b"0123456789"


@everywhere
@pytest.mark.parametrize("prefix", ["u32be", "varint"])
async def test_a_channel_of_messages(world: World, prefix: Any) -> None:
    messages = [BLOCK[i : i + (i * 37) % 3000] for i in range(300)]
    network = world.make()
    listener = await network.bind(ANY_PORT)
    client, server = await connect(network, listener)
    left, right = FrameStream(client, prefix=prefix), FrameStream(server, prefix=prefix)
    async with closing(listener, left, right), trio.open_nursery() as nursery:

        async def echo() -> None:
            async for message in right:
                await right.send([message[:3], message[3:]])
            await right.send_eof()

        async def send() -> None:
            for message in messages[:100]:
                await left.send(message)
            await left.send_many(messages[100:])
            await left.send_eof()

        nursery.start_soon(echo)
        nursery.start_soon(send)
        got = [await left.receive()]
        while len(got) < len(messages):
            got += await left.receive_many()
        assert got == messages
        await expect(trio.EndOfChannel, left.receive)
        await expect(trio.EndOfChannel, left.receive)
