"""FrameStream and a hostile peer: the right messages, the right error, and bounded memory.

Rules: a plain decoder that gets all bytes at once says what is right. Memory, as tracemalloc counts
it, is bounded by the limit and one receive.
"""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import PAIRS, ScriptedReceiver, connected
from support.streams import closing, receive_all, unix_streams
from trio.testing import wait_all_tasks_blocked

from trio_uring import FrameError, FrameStream, FrameTooLarge, IncompleteReadError
from trio_uring.framing import SIZE_MAX

from .test_frame_stream import channel_over
from .test_frames import both_prefixes, every_kind
from .test_frames_receive import cut_short
from .test_framing import PREFIXES, SLACK, cut_up, cuts, encoded_size
from .test_framing_hostile import hostile, plain_decode

if TYPE_CHECKING:
    from trio_uring.framing import Prefix

LARGE = 2**17  # bytes of the largest receive of a stream that is asked for any number
ENDS = {
    "": (trio.EndOfChannel, IncompleteReadError),
    "too large": (FrameTooLarge,),
    "malformed": (FrameError,),
}


@given(
    data=hostile,
    sizes=cuts,
    limit=st.sampled_from([0, 5, 256, 70_000, SIZE_MAX]),
    prefix=st.sampled_from(PREFIXES),
    many=st.booleans(),
)
def test_any_bytes_give_messages_or_the_right_error(
    data: bytes, sizes: list[int], limit: int, prefix: Prefix, many: bool
) -> None:
    frames, end, left = plain_decode(data, limit, prefix)

    async def main() -> None:
        channel = channel_over(
            ScriptedReceiver(cut_up(data, sizes), ended=True), max_size=limit, prefix=prefix
        )
        got: list[bytes] = []

        async def receive_all_messages() -> None:
            while True:
                got.extend(await channel.receive_many() if many else [await channel.receive()])

        with pytest.raises(ENDS[end]) as info:
            await receive_all_messages()
        assert got == frames
        if end:
            assert isinstance(info.value, FrameTooLarge) == (end == "too large")
        else:
            assert isinstance(info.value, IncompleteReadError) == bool(left)
        with pytest.raises(type(info.value)):
            await channel.receive()

    trio.run(main)


@every_kind
@both_prefixes
async def test_a_hostile_prefix_allocates_nothing(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as (left, right):
        channel = FrameStream(right, SIZE_MAX, prefix=prefix)
        await left.send_all(encoded_size(SIZE_MAX, prefix) + b"0123456789")
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            await cut_short(channel.receive, None)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < LARGE + SLACK


@pytest.mark.parametrize(
    "kind", [kind for kind in PAIRS if kind not in ("memory", "stapled", "tls")]
)
async def test_memory_is_the_limit_and_one_receive_for_a_peer_that_sends_without_end(
    kind: str,
) -> None:
    """Large messages that nobody takes: what does not fit stays with the peer."""
    limit = 2**20
    async with connected(kind) as (left, right):
        channel = FrameStream(right, limit)
        message = encoded_size(limit, "u32be") + bytes(limit)

        async def flood() -> None:
            while True:
                await left.send_all(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            tracemalloc.start()
            try:
                for _ in range(5):
                    assert len(await channel.receive()) == limit
                    await wait_all_tasks_blocked()
                held, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            nursery.cancel_scope.cancel()
        assert held < limit + 2 * LARGE  # what came of the next message
        # Its pieces while they are joined; and the one before, which this test held.
        assert peak < 3 * limit


@pytest.mark.long
@both_prefixes
async def test_a_message_that_drips_is_held_once(prefix: Prefix) -> None:
    size = 2**16
    peer = ScriptedReceiver()
    channel = channel_over(peer, max_size=size, prefix=prefix)
    data = encoded_size(size, prefix) + bytes(size)
    async with trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await channel.receive())

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            for start in range(0, len(data) - 2, 2):
                peer.arrive(data[start : start + 2])
                if start % 4096 == 0:
                    await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            peer.requests.clear()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert size * 0.9 < held < 1.5 * size
        assert not peer.pieces
        peer.arrive(data[-2:])
    assert got == [bytes(size)]


@pytest.mark.parametrize("size", [0, 2])
async def test_many_tiny_messages_are_no_more_than_one_receive(size: int) -> None:
    message = encoded_size(size, "varint") + b"x" * size
    channel = channel_over(ScriptedReceiver([message * (LARGE // len(message))]), prefix="varint")
    tracemalloc.start()
    try:
        assert await channel.receive() == b"x" * size
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < LARGE + SLACK


@both_prefixes
async def test_a_message_too_large_to_send_allocates_nothing_and_sends_nothing(
    prefix: Prefix,
) -> None:
    left, right = unix_streams()
    channel = FrameStream(left, 100, prefix=prefix)
    large = bytes(2**22)
    async with closing(channel, right):
        tracemalloc.start()
        try:
            for call in (
                partial(channel.send, large),
                partial(channel.send, [large]),
                partial(channel.send_many, [b"1", large]),
            ):
                with pytest.raises(FrameTooLarge):
                    await call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * SLACK
        await channel.send_eof()
        assert await receive_all(right) == b""


async def test_a_closed_channel_holds_nothing() -> None:
    tracemalloc.start()
    try:
        peer = ScriptedReceiver(
            [(encoded_size(LARGE, "u32be") + bytes(LARGE)) * 3 + b"\0\2\0\0" + bytes(LARGE - 1)]
        )
        channel = channel_over(peer)
        assert len(await channel.receive()) == LARGE
        await channel.aclose()
        assert tracemalloc.get_traced_memory()[0] < SLACK
    finally:
        tracemalloc.stop()
