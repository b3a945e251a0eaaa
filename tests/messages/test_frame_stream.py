"""FrameStream: messages both ways over every kind of stream, limits, ends, and how few operations
they take.

Rules: what must be on the wire is computed from the format, not by the codec. Operations are what
the ring counted.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.scripted import PAIRS, ScriptedReceiver, connected, network_stream
from support.streams import closing, count_of, pattern, receive_all, unix_streams
from trio.testing import assert_checkpoints

from trio_uring import FrameError, FrameStream, FrameTooLarge, IncompleteReadError

from .test_frames import PAYLOADS, Listing, Vectored, both_prefixes, every_kind
from .test_framing import encoded, encoded_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_uring.framing import Prefix

ENDING = [kind for kind in PAIRS if kind != "tls"]
RECEIVES: dict[str, Callable[..., Any]] = {
    "receive": lambda channel, **options: channel.receive(**options),
    "receive_many": lambda channel, **options: channel.receive_many(**options),
    "async for": lambda channel: channel.__anext__(),
}


def channel_over(peer: ScriptedReceiver, **options: Any) -> FrameStream:
    return FrameStream(trio.StapledStream(Listing(), peer), **options)


# -- messages


@every_kind
@both_prefixes
async def test_every_payload_both_ways_over_every_kind(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as streams:
        left, right = (FrameStream(stream, prefix=prefix) for stream in streams)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for payload, _ in PAYLOADS.values():
                    await left.send(payload)

            async def echo() -> None:
                for _ in PAYLOADS:
                    await right.send(await right.receive())

            nursery.start_soon(send)
            nursery.start_soon(echo)
            for name, (_, expected) in PAYLOADS.items():
                got = await left.receive()
                assert got == expected, name
                assert type(got) is bytes


@pytest.mark.parametrize("kind", ENDING)
@both_prefixes
async def test_async_for_until_the_end(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as (left, right):
        sender, receiver = FrameStream(left, prefix=prefix), FrameStream(right, prefix=prefix)
        await sender.send_many([b"one", b"", b"three"])
        await sender.aclose()
        got = []
        async for message in receiver:
            got.append(message)
        assert got == [b"one", b"", b"three"]
        for receive in RECEIVES.values():
            with pytest.raises(
                StopAsyncIteration if receive is RECEIVES["async for"] else trio.EndOfChannel
            ):
                await receive(receiver)


@pytest.mark.parametrize("kind", ENDING)
async def test_send_eof_ends_one_direction(kind: str) -> None:
    async with connected(kind) as streams:
        left, right = map(FrameStream, streams)
        await left.send(b"question")
        await left.send_eof()
        assert [message async for message in right] == [b"question"]
        await right.send_many([b"the", b"answer"])
        assert [await left.receive(), await left.receive()] == [b"the", b"answer"]
        with pytest.raises(trio.ClosedResourceError):
            await left.send(b"more")


async def test_send_eof_of_a_stream_that_has_none() -> None:
    async with connected("tls") as streams:
        left, right = map(FrameStream, streams)
        with pytest.raises(AttributeError, match="send_eof"):
            await left.send_eof()
        await left.send(b"works")
        assert await right.receive() == b"works"


@both_prefixes
async def test_send_and_send_many_put_the_same_bytes_on_the_wire(prefix: Prefix) -> None:
    messages = [
        b"a",
        b"",
        bytearray(b"bc"),
        [b"d", b"e"],
        b"x" * 1024,
        b"y" * 1025,
        memoryview(b"-f-")[1:2],
        b"z" * 70_000,
    ]
    plain = [b"a", b"", b"bc", b"de", b"x" * 1024, b"y" * 1025, b"f", b"z" * 70_000]
    one, many = Listing(), Listing()
    sender = FrameStream(trio.StapledStream(one, ScriptedReceiver()), prefix=prefix)
    for message in messages:
        await sender.send(message)
    await FrameStream(trio.StapledStream(many, ScriptedReceiver()), prefix=prefix).send_many(
        iter(messages)
    )
    assert b"".join(data for _, data in one.sent) == encoded(plain, prefix)
    assert b"".join(data for _, data in many.sent) == encoded(plain, prefix)
    # The large one as it is, without a copy.
    assert messages[7] in [owner for owner, _ in many.sent]
    assert all(owner is messages[7] for owner, data in many.sent if len(data) == 70_000)


# -- in how few operations


@pytest.mark.parametrize("wrap", [lambda stream: stream, network_stream], ids=["stream", "network"])
@both_prefixes
async def test_a_thousand_small_messages_are_at_most_two_operations(
    wrap: Callable[[Any], Any], prefix: Prefix
) -> None:
    left, right = unix_streams()
    sender, receiver = (
        FrameStream(wrap(left), prefix=prefix),
        FrameStream(wrap(right), prefix=prefix),
    )
    messages = [b"message %d" % number for number in range(1000)]
    async with closing(sender, receiver):
        await sender.send_many(messages)
        assert 1 <= count_of("SEND").submitted + count_of("SENDMSG").submitted <= 2
        got = []
        while len(got) < len(messages):
            some = await receiver.receive_many()
            assert some
            got += some
        assert got == messages
        assert count_of("RECV").submitted <= 4


async def test_one_operation_for_a_message_with_its_prefix() -> None:
    left, right = unix_streams()
    sender = FrameStream(left)
    async with closing(sender, right):
        for done, payload in enumerate(
            [b"hello", bytearray(b"hello"), [b"a", b"b"], bytes(5000)], 1
        ):
            await sender.send(payload)
            assert count_of("SENDMSG").submitted + count_of("SEND").submitted == done
            await right.receive_some()


async def test_a_wrapper_that_forwards_lists_gets_the_timeout() -> None:
    class Both(Vectored, trio.abc.Stream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise NotImplementedError

    stream = Both()
    channel = FrameStream(stream, prefix="varint")
    large = b"x" * 5000
    await channel.send(large, timeout=3)
    await channel.send_many([b"ab", b"cd"], timeout=4)
    await channel.send_many([b"ab", large, b"cd"], timeout=5)
    head = b"\x88\x27"
    assert stream.calls == [
        ([head, large], 3),
        ([b"\x02ab\x02cd"], 4),
        ([b"\x02ab" + head, large, b"\x02cd"], 5),
    ]
    assert stream.sent == []


async def test_receive_many_gives_all_that_came_and_never_nothing() -> None:
    peer = ScriptedReceiver(
        [
            encoded([b"1", b"2", b"3"], "u32be")[:-1],
            b"3" + encoded([b"4"], "u32be"),
            b"\0\0",
            b"\0\1" + b"5",
        ]
    )
    channel = channel_over(peer)
    assert await channel.receive_many() == [b"1", b"2"]
    assert await channel.receive() == b"3"
    assert await channel.receive_many() == [b"4"]
    assert len(peer.requests) == 2
    assert await channel.receive_many() == [b"5"]
    assert len(peer.requests) == 4


# -- limits and ends


@pytest.mark.parametrize("kind", ENDING)
@both_prefixes
async def test_the_limit_is_inclusive_in_both_directions(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as (left, right):
        sender, receiver = (
            FrameStream(left, 100, prefix=prefix),
            FrameStream(right, 99, prefix=prefix),
        )
        for call in (
            partial(sender.send, b"x" * 101),
            partial(sender.send, [b"x" * 100, b"y"]),
            partial(sender.send_many, [b"first", b"x" * 101, b"last"]),
        ):
            with pytest.raises(FrameTooLarge) as info:
                await call()
            assert (info.value.size, info.value.max_size) == (101, 100)
        await sender.send(b"x" * 99)  # the channel is as usable as before, and nothing went
        await sender.send_many([b"a", b"b", b"y" * 100, b"c"])
        await sender.aclose()
        assert await receiver.receive() == b"x" * 99
        # Before the error.
        assert [await receiver.receive(), await receiver.receive()] == [b"a", b"b"]
        for receive in (*RECEIVES.values(), *RECEIVES.values()):
            with pytest.raises(FrameTooLarge) as info:
                await receive(receiver)
            assert (info.value.size, info.value.max_size) == (100, 99)


@pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
@pytest.mark.parametrize("pieces", [1, 3, 1000])
async def test_messages_before_an_error_come_first(
    receive: Callable[..., Any], pieces: int
) -> None:
    data = encoded([b"one", b"two"], "varint") + b"\xff\xff\xff\xff\x1f" + b"more"
    peer = ScriptedReceiver([data[start : start + pieces] for start in range(0, len(data), pieces)])
    channel = channel_over(peer, prefix="varint")
    got: list[bytes] = []
    while len(got) < 2:
        some = await receive(channel)
        got += some if isinstance(some, list) else [some]
    assert got == [b"one", b"two"]
    for _ in range(3):
        with pytest.raises(FrameError, match="longer than 5 bytes") as info:
            await receive(channel)
        assert not isinstance(info.value, FrameTooLarge)
    requests = len(peer.requests)
    with pytest.raises(FrameError):
        await receive(channel)
    assert len(peer.requests) == requests  # what cannot be understood is not received any more


@pytest.mark.parametrize("kind", ENDING)
@both_prefixes
async def test_the_end_within_a_message(kind: str, prefix: Prefix) -> None:
    head = encoded_size(130, prefix)
    data = head + b"x" * 130
    for cut in (0, 1, len(head) - 1, len(head), len(head) + 1, len(data) - 1):
        async with connected(kind) as (left, right):
            channel = FrameStream(right, prefix=prefix)
            await left.send_all(encoded([b"whole"], prefix) + data[:cut])
            await left.aclose()
            assert await channel.receive() == b"whole"
            for receive in (channel.receive, channel.receive_many, channel.receive):
                with pytest.raises(IncompleteReadError if cut else trio.EndOfChannel) as info:
                    await receive()
                if cut:
                    expected = 130 if cut >= len(head) else (4 if prefix == "u32be" else cut + 1)
                    partial_ = data[len(head) : cut] if cut >= len(head) else data[:cut]
                    assert (info.value.partial, info.value.expected) == (partial_, expected)


# -- errors of the caller


@pytest.mark.parametrize("kind", ["ring", "trio", "memory", "network"])
async def test_a_message_that_is_none_leaves_the_channel_usable(kind: str) -> None:
    async with connected(kind) as (left, right):
        sender, receiver = FrameStream(left), FrameStream(right)
        for wrong in ("text", 5, None, [b"a", "b"], [b"a", 5]):
            with pytest.raises(TypeError):
                await sender.send(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await sender.send_many([b"good", wrong])  # type: ignore[list-item]
        with pytest.raises(BufferError):
            await sender.send(memoryview(b"abcdef")[::2])
        with pytest.raises(TypeError):
            await sender.send_many(b"text")  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await sender.send_many(1 // number for number in (0,))  # type: ignore[misc]
        await sender.send(b"works")
        assert await receiver.receive() == b"works"


@pytest.mark.parametrize("kind", ["ring", "network", "trio", "memory"])
@pytest.mark.parametrize("size", [1, 5000])
async def test_a_timeout_that_is_none_leaves_the_channel_usable(kind: str, size: int) -> None:
    async with connected(kind) as (left, right):
        sender, receiver = FrameStream(left), FrameStream(right)
        for timeout in (-1, math.nan):
            with pytest.raises(ValueError, match="must"):
                await sender.send(bytes(size), timeout=timeout)
            with pytest.raises(ValueError, match="must"):
                await receiver.receive(timeout=timeout)
        await sender.send(b"works")
        assert await receiver.receive() == b"works"


def test_what_a_channel_is_made_over() -> None:
    with pytest.raises(TypeError, match=r"made over a trio.abc.Stream, not 5"):
        FrameStream(5)  # type: ignore[arg-type]
    stream = trio.StapledStream(Listing(), ScriptedReceiver())
    with pytest.raises(ValueError, match="max_size must be"):
        FrameStream(stream, -1)
    with pytest.raises(ValueError, match="'u32be' or 'varint'"):
        FrameStream(stream, prefix="u16")  # type: ignore[arg-type]
    assert isinstance(FrameStream(stream), trio.abc.Channel)


@every_kind
async def test_after_close(kind: str) -> None:
    async with connected(kind) as (left, right):
        sender, channel = FrameStream(left), FrameStream(right)
        await sender.send_many([b"one", b"two"])
        assert await channel.receive() == b"one"
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.aclose()
        for call in (
            channel.receive,
            channel.receive_many,
            partial(channel.send, b""),
            partial(channel.send_many, []),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        with pytest.raises(trio.ClosedResourceError):
            await right.receive_some()  # it was ours
        await channel.aclose()


@every_kind
async def test_every_method_is_a_checkpoint(kind: str) -> None:
    async with connected(kind) as (left, right):
        sender, receiver = FrameStream(left), FrameStream(right)
        for messages in ([], [b""], [b"1", b"2"], [pattern(1000)]):
            with assert_checkpoints():
                await sender.send_many(messages)
        with assert_checkpoints():
            await sender.send(b"")
        with assert_checkpoints():
            await sender.send([])
        for receive in (
            receiver.receive,
            receiver.receive,
            receiver.receive,
            receiver.receive_many,
        ):
            with assert_checkpoints():
                assert await receive() is not None
        if kind != "tls":
            with assert_checkpoints():
                await sender.send_eof()
        with assert_checkpoints():
            await sender.aclose()


async def test_nothing_is_sent_for_no_messages() -> None:
    left, right = unix_streams()
    sender = FrameStream(left)
    async with closing(sender, right):
        await sender.send_many([])
        await sender.send_many(iter(()))
        await sender.send_eof()
        assert await receive_all(right) == b""
