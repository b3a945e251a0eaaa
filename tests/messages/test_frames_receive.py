"""receive_frame interrupted, ended, refused and attacked: no byte is lost, none is taken beyond the
frame, and nothing is allocated ahead.

Rules: every kind of stream, both prefixes, every byte. A call is interrupted when all tasks are
blocked, so that it has received what came; the result never depends on that. Memory is what
tracemalloc counts.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.scripted import PAIRS, HiccupError, ScriptedReceiver, connected
from support.streams import closing, unix_streams
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_uring import (
    BufferedReceiveStream,
    FrameError,
    FrameTooLarge,
    IncompleteReadError,
    receive_frame,
    send_frame,
)
from trio_uring._messages import frames as _frames
from trio_uring.framing import SIZE_MAX

from .test_frames import both_prefixes, every_kind
from .test_framing import SLACK, encoded, encoded_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_uring.framing import Prefix

# Kinds whose end can be told apart from a broken connection after send_eof or aclose.
ENDING = [kind for kind in PAIRS if kind != "tls"]
SCRIPTED: dict[str, Callable[[ScriptedReceiver], Any]] = {
    "plain": lambda peer: peer,
    "unbuffered": lambda peer: BufferedReceiveStream(peer, 0),
    "small buffer": lambda peer: BufferedReceiveStream(peer, 3),
    "buffered": BufferedReceiveStream,
}


async def cut_short(
    call: Callable[..., Awaitable[Any]], clock: trio.testing.MockClock | None
) -> None:
    """Lets a call receive what is there, and cancels it; or lets its time be up."""
    if clock is None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        return

    async def too_slow() -> None:
        with pytest.raises(trio.TooSlowError):
            await call(timeout=10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(too_slow)
        await wait_all_tasks_blocked()
        clock.jump(10)


# -- cut short


@every_kind
@both_prefixes
async def test_cancelled_after_every_byte_goes_on_where_it_was(kind: str, prefix: Prefix) -> None:
    payload = bytes(range(130))  # its varint has two bytes
    data = encoded([payload], prefix)
    async with connected(kind) as (left, right):
        for cut in range(len(data)):
            await left.send_all(data[:cut]) if cut else None
            await cut_short(partial(receive_frame, right, prefix=prefix), None)
            await left.send_all(data[cut:])
            assert await receive_frame(right, prefix=prefix) == payload


@every_kind
@both_prefixes
async def test_timed_out_after_every_byte_of_one_frame(
    kind: str, prefix: Prefix, mock_clock: trio.testing.MockClock
) -> None:
    payload = bytes(range(128, 256)) + b"!"
    async with connected(kind) as (left, right):
        for byte in encoded([payload], prefix):
            await cut_short(partial(receive_frame, right, prefix=prefix), mock_clock)
            await left.send_all(bytes([byte]))
        await left.send_all(encoded([b"next"], prefix))
        assert await receive_frame(right, prefix=prefix) == payload
        assert await receive_frame(right, prefix=prefix) == b"next"


@pytest.mark.parametrize("wrap", SCRIPTED.values(), ids=SCRIPTED)
@both_prefixes
async def test_an_error_of_the_stream_loses_nothing_either(
    wrap: Callable[..., Any], prefix: Prefix
) -> None:
    peer = ScriptedReceiver()
    stream = wrap(peer)
    for byte in encoded([b"x" * 200], prefix):
        peer.arrive(bytes([byte]))
        peer.fail(HiccupError("scripted"))
    failures = 0
    frame = None
    while frame is None:
        try:
            frame = await receive_frame(stream, prefix=prefix)
        except HiccupError:
            failures += 1
    assert frame == b"x" * 200
    assert failures == len(encoded([b"x" * 200], prefix)) - 1
    assert id(peer) not in _frames._kept


@pytest.mark.parametrize("timeout_of_stream", [False, True])
async def test_the_time_is_for_the_whole_call(
    timeout_of_stream: bool, autojump_clock: trio.testing.MockClock
) -> None:
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, receive_timeout=10 if timeout_of_stream else None)

    async def drip() -> None:
        for byte in encoded([b"abc"], "u32be"):
            await trio.sleep(4)
            peer.arrive(bytes([byte]))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        for elapsed in (10, 20):
            with pytest.raises(trio.TooSlowError):
                await receive_frame(stream, timeout=None if timeout_of_stream else 10)
            assert trio.current_time() - began == pytest.approx(elapsed)
        assert await receive_frame(stream, timeout=float("inf")) == b"abc"


async def test_what_an_interrupted_call_had_goes_with_its_stream() -> None:
    left, right = trio.testing.memory_stream_pair()
    await left.send_all(b"\0\0\0\5ab")
    await cut_short(partial(receive_frame, right), None)
    (key,) = (key for key, kept in _frames._kept.items() if kept == b"\0\0\0\5ab")
    gone = weakref.ref(right)
    del left, right
    gc.collect()
    assert gone() is None
    assert key not in _frames._kept


async def test_cancelled_before_it_began_takes_nothing() -> None:
    for kind in PAIRS:
        async with connected(kind) as (left, right):
            await send_frame(left, b"here")
            with trio.CancelScope() as scope:
                scope.cancel()
                await receive_frame(right)
            assert scope.cancelled_caught
            with pytest.raises(trio.TooSlowError):
                await receive_frame(right, timeout=0)
            with assert_checkpoints():
                assert await receive_frame(right) == b"here"


# -- ended


@pytest.mark.parametrize("kind", ENDING)
@both_prefixes
async def test_the_end_between_and_within_frames(kind: str, prefix: Prefix) -> None:
    payload = b"x" * 130
    head, data = encoded_size(130, prefix), encoded([payload], prefix)
    for cut in (0, 1, len(head) - 1, len(head), len(head) + 1, len(data) - 1):
        async with connected(kind) as (left, right):
            await left.send_all(encoded([b"whole"], prefix) + data[:cut])
            await left.aclose()
            assert await receive_frame(right, prefix=prefix) == b"whole"
            for _ in range(2):  # and the same again: nothing was lost
                with pytest.raises(IncompleteReadError) as info:
                    await receive_frame(right, prefix=prefix)
                partial_, expected = info.value.partial, info.value.expected
                if cut > len(head):
                    assert (partial_, expected) == (data[len(head) : cut], 130)
                elif cut == len(head):
                    assert (partial_, expected) == (head, len(data))
                else:
                    assert (partial_, expected) == (data[:cut], 4 if prefix == "u32be" else cut + 1)


# -- refused


@every_kind
@both_prefixes
async def test_a_frame_that_is_too_large_is_found_by_its_prefix_again_and_again(
    kind: str, prefix: Prefix
) -> None:
    async with connected(kind) as (left, right):
        await left.send_all(encoded([b"x" * 100], prefix) + encoded_size(101, prefix) + b"yz")
        assert await receive_frame(right, 100, prefix=prefix) == b"x" * 100
        for limit in (100, 0, 100):
            with pytest.raises(FrameTooLarge, match=f"101 .* {limit} bytes") as info:
                await receive_frame(right, limit, prefix=prefix)
            assert (info.value.size, info.value.max_size) == (101, limit)
        await left.send_all(b"y" * 99)
        # A later call may allow it.
        assert await receive_frame(right, 101, prefix=prefix) == b"yz" + b"y" * 99


@pytest.mark.parametrize("wrap", SCRIPTED.values(), ids=SCRIPTED)
@both_prefixes
async def test_a_frame_too_large_is_refused_also_when_all_of_it_is_here(
    wrap: Callable[..., Any], prefix: Prefix
) -> None:
    stream = wrap(ScriptedReceiver([encoded([b"first", b"x" * 101, b"last"], prefix)]))
    assert await receive_frame(stream, prefix=prefix) == b"first"
    for _ in range(2):
        with pytest.raises(FrameTooLarge, match=r"101 .* 100 bytes"):
            await receive_frame(stream, 100, prefix=prefix)
    assert await receive_frame(stream, 101, prefix=prefix) == b"x" * 101
    assert await receive_frame(stream, 4, prefix=prefix) == b"last"


@every_kind
async def test_a_varint_that_is_none_is_found_again_and_again(kind: str) -> None:
    async with connected(kind) as (left, right):
        await left.send_all(b"\1x" + b"\x80\x80\x80\x80\x10" + b"abc")
        assert await receive_frame(right, prefix="varint") == b"x"
        for _ in range(3):
            with pytest.raises(FrameError, match="longer than 5 bytes, or larger") as info:
                await receive_frame(right, prefix="varint")
            assert not isinstance(info.value, FrameTooLarge)


async def test_what_is_too_large_is_refused_without_receiving_any_of_it() -> None:
    peer = ScriptedReceiver([b"\0\0\1\0" + bytes(256)])
    with pytest.raises(FrameTooLarge):
        await receive_frame(peer, 255)
    assert peer.given == 4
    with pytest.raises(FrameTooLarge):
        await receive_frame(peer, 255)
    assert peer.given == 4


@every_kind
@both_prefixes
async def test_a_hostile_prefix_allocates_nothing(kind: str, prefix: Prefix) -> None:
    async with connected(kind) as (left, right):
        await left.send_all(encoded_size(2**28, prefix) + b"0123456789")
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            await cut_short(partial(receive_frame, right, SIZE_MAX, prefix=prefix), None)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**17 + SLACK  # what a stream provides for one receive
        assert right is not None


@every_kind
async def test_closed_and_busy(kind: str) -> None:
    async with connected(kind) as (left, right):
        async with trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def receive() -> None:
                got.append(await receive_frame(right))

            await left.send_all(b"\0\0\0\5he")
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await receive_frame(right)
            await left.send_all(b"llo")
        assert got == [b"hello"]  # the other call took nothing from it
        await right.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await receive_frame(right)


# -- streams of other packages


class Unhashable(ScriptedReceiver):
    """As a dataclass is, unless it says otherwise."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)


class NoWeakReferences(trio.abc.ReceiveStream):
    __slots__ = ("peer",)

    def __init__(self, pieces: list[bytes]) -> None:
        self.peer = ScriptedReceiver(pieces)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.peer.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.peer.aclose()


async def test_any_stream_will_do_that_has_weak_references() -> None:
    one, other = Unhashable([b"\0\0\0\3a"]), Unhashable([b"\0\0\0\3xyz"])
    await cut_short(partial(receive_frame, one), None)
    assert one == other
    assert await receive_frame(other) == b"xyz"  # what the other call had is not this one's
    one.arrive(b"bc")
    assert await receive_frame(one) == b"abc"


class Trusting(ScriptedReceiver):
    """Does not tell two receiving tasks."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self._busy = False
        return await super().receive_some(max_bytes)


async def test_two_tasks_are_told_also_on_a_stream_that_does_not() -> None:
    stream = Trusting([b"\0\0\0\3a"])
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await receive_frame(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        for _ in range(2):
            with pytest.raises(trio.BusyResourceError, match="another task is currently receiving"):
                await receive_frame(stream)
        stream.arrive(b"bc")
    assert got == [b"abc"]


async def test_a_stream_without_weak_references_is_wrapped() -> None:
    stream = NoWeakReferences([b"\0\0\0\3a", b"bc"])
    with pytest.raises(
        TypeError,
        match="NoWeakReferences has no weak references: wrap it in a BufferedReceiveStream",
    ):
        await receive_frame(stream)
    assert await receive_frame(BufferedReceiveStream(stream)) == b"abc"


async def test_our_own_streams_take_back_what_an_interrupted_call_had() -> None:
    left, right = unix_streams()
    async with closing(left, right):
        await left.send_all(b"\0\0\0\5he")
        await cut_short(partial(receive_frame, right), None)
        assert id(right) not in _frames._kept  # our own streams take it back
        assert await right.receive_exactly(6) == b"\0\0\0\5he"
