"""FrameStream over a stream that refuses a send, or that another task closes at the worst moment.

Rules: the stream is scripted, and the test decides the order of two tasks, not the scheduler.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from support.scripted import Late, ScriptedReceiver, until_resumed
from trio.testing import wait_all_tasks_blocked

from trio_uring import FrameStream

from .test_frame_stream import RECEIVES, channel_over
from .test_frames import Listing
from .test_frames_receive import cut_short
from .test_framing import encoded

LARGE = b"x" * 5000  # too large to be joined with its prefix
every_receive = pytest.mark.parametrize(
    "receive", [RECEIVES["receive"], RECEIVES["receive_many"]], ids=["receive", "receive_many"]
)
refusals = pytest.mark.parametrize("refusal", [trio.BusyResourceError, trio.ClosedResourceError])


class Refusing(Listing):
    """Raises at one of its calls, counted from 0."""

    def __init__(self, at: int, refusal: type[Exception]) -> None:
        super().__init__()
        self.left: int = at
        self.refusal = refusal

    async def send_all(self, data: Any) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.refusal("scripted")
        await super().send_all(data)


class CountingRefusing(Refusing):
    """Takes lists as one call, and counts."""

    bytes_sent = 0

    async def send_all_vectored(self, buffers: Any, *, timeout: float | None = None) -> None:
        await self.send_all(b"".join(bytes(buffer) for buffer in buffers))


def refusing(stream: Refusing) -> FrameStream:
    return FrameStream(trio.StapledStream(stream, ScriptedReceiver()))


# -- refused sends


@refusals
async def test_a_refused_small_message_was_not_begun(refusal: type[Exception]) -> None:
    stream = Refusing(0, refusal)
    channel = refusing(stream)
    with pytest.raises(refusal, match="scripted"):
        await channel.send(b"small")
    await channel.send(b"works")
    assert b"".join(data for _, data in stream.sent) == encoded([b"works"], "u32be")


@refusals
@pytest.mark.parametrize("many", [False, True])
async def test_a_refused_list_was_not_begun_on_a_stream_that_takes_lists(
    refusal: type[Exception], many: bool
) -> None:
    stream = CountingRefusing(0, refusal)
    stream.bytes_sent = 17  # of an earlier send: a refused one does not begin to count
    channel = refusing(stream)
    with pytest.raises(refusal, match="scripted"):
        await (channel.send_many([b"1", LARGE]) if many else channel.send(LARGE))
    await channel.send(LARGE)
    assert b"".join(data for _, data in stream.sent) == encoded([LARGE], "u32be")


@refusals
@pytest.mark.parametrize("many", [False, True])
async def test_refused_after_the_prefix_is_within_a_message(
    refusal: type[Exception], many: bool
) -> None:
    stream = Refusing(1, refusal)
    channel = refusing(stream)
    with pytest.raises(refusal, match="scripted"):
        await (channel.send_many([b"1", LARGE]) if many else channel.send(LARGE))
    assert len(stream.sent) == 1  # the prefix went: the peer cannot follow any more
    with pytest.raises(trio.BrokenResourceError, match="interrupted within a message"):
        await channel.send(b"next")
    assert len(stream.sent) == 1


# -- cut short, on a stream that counts lists


class CountsListsOnly(trio.abc.SendStream):
    """A stream of somebody else's; what `bytes_sent` is of its send_all, nobody has declared."""

    bytes_sent = 0

    async def send_all_vectored(self, buffers: Any, *, timeout: float | None = None) -> None:
        raise AssertionError("no list is sent")

    async def send_all(self, data: Any) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        raise AssertionError("nobody waits")

    async def aclose(self) -> None:
        raise AssertionError("nobody closes it")


async def test_a_count_of_lists_says_nothing_about_one_buffer() -> None:
    channel = FrameStream(trio.StapledStream(CountsListsOnly(), ScriptedReceiver()))
    await cut_short(partial(channel.send, b"small"), None)
    with pytest.raises(trio.BrokenResourceError, match="interrupted within a message"):
        await channel.send(b"next")


# -- closed by another task


@every_receive
async def test_closed_at_the_checkpoint_of_a_receive_that_has_its_message(receive: Any) -> None:
    channel = channel_over(ScriptedReceiver([encoded([b"1", b"2", b"3"], "u32be")]))
    assert await channel.receive() == b"1"
    with pytest.raises(trio.ClosedResourceError):
        await until_resumed(receive(channel), channel.aclose)
    assert channel._decoder.pending == 0  # and it holds nothing


@every_receive
@pytest.mark.parametrize("first", [b"", b"\0\0\0\1x\0\0"])
async def test_what_comes_with_the_close_comes_too_late(receive: Any, first: bytes) -> None:
    peer = Late([encoded([b"late", b"message"], "u32be")])
    channel = channel_over(peer)
    if first:
        peer.arrive(first)
        assert await channel.receive() == b"x"
    errors: list[BaseException] = []

    async def closed() -> None:
        with pytest.raises(trio.ClosedResourceError) as info:
            await receive(channel)
        errors.append(info.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(closed)
        await wait_all_tasks_blocked()
        nursery.start_soon(partial(channel.aclose))
    assert len(errors) == 1
    assert channel._decoder.pending == 0
