"""FrameStream when calls are interrupted: a send within a message breaks it, a receive loses
nothing.

Rules: a call is interrupted when all tasks are blocked, by a MockClock that a test moves, or after
a number of passes. Not only the stream says how much was sent: the peer is asked what it holds.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cuts import Cutter, cuts
from support.destroy import Call
from support.scripted import PAIRS, ScriptedReceiver, connected, network_stream
from support.streams import (
    TINY,
    checked_run,
    clog,
    closing,
    drain,
    pattern,
    unix_sockets,
    unix_streams,
)
from trio.testing import wait_all_tasks_blocked

from trio_uring import FrameStream, SocketStream, receive_frame

from .test_frame_stream import channel_over
from .test_frames import both_prefixes, every_kind
from .test_frames_receive import cut_short
from .test_framing import PREFIXES, cut_up, encoded
from .test_framing import cuts as chunk_sizes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from trio_uring.framing import Prefix

    Clock = trio.testing.MockClock

WRAPS: dict[str, Callable[[SocketStream], Any]] = {
    "stream": lambda stream: stream,
    "network": network_stream,
}
SENDS: dict[str, Callable[..., Any]] = {
    "send": lambda channel, data, **options: channel.send(data, **options),
    "send_many": lambda channel, data, **options: channel.send_many(
        [data[:5], data[5:]], **options
    ),
}
RECEIVES: dict[str, Callable[..., Any]] = {
    "receive": lambda channel, **options: channel.receive(**options),
    "receive_many": lambda channel, **options: channel.receive_many(**options),
}
every_wrap = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
every_send = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)
every_receive = pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
by_time = pytest.mark.parametrize("timed", [False, True], ids=["cancelled", "timed out"])


def ring_channel(
    wrap: Callable[[SocketStream], Any], send_buffer: int | None = None
) -> tuple[FrameStream, socket.socket]:
    ours, peer = unix_sockets(send_buffer)
    return FrameStream(wrap(SocketStream(ours))), peer


# -- sends


@every_wrap
@every_send
@by_time
async def test_a_send_cut_short_within_a_message_breaks_the_sending_side(
    wrap: Any, send: Any, timed: bool, mock_clock: Clock
) -> None:
    channel, peer = ring_channel(wrap, TINY)
    async with closing(channel, peer):
        await cut_short(partial(send, channel, pattern(500_000)), mock_clock if timed else None)
        sent = channel.stream.bytes_sent  # type: ignore[attr-defined]
        assert 0 < sent < 500_000
        assert len(drain(peer)) == sent
        for call in (
            partial(channel.send, b"next"),
            partial(channel.send_many, [b"next"]),
            partial(channel.send, b"", timeout=5),
        ):
            with pytest.raises(
                trio.BrokenResourceError, match="an earlier send was interrupted within a message"
            ):
                await call()
        assert drain(peer) == b""  # which the peer would take for the rest of the message
        peer.setblocking(True)
        peer.send(encoded([b"still"], "u32be"))
        assert await channel.receive() == b"still"


@every_wrap
@every_send
@by_time
async def test_a_send_cut_short_before_its_first_byte_breaks_nothing(
    wrap: Any, send: Any, timed: bool, mock_clock: Clock
) -> None:
    channel, peer = ring_channel(wrap, TINY)
    async with closing(channel, peer):
        await channel.send(b"an earlier one, which sent something")
        drain(peer)
        transport: Any = getattr(channel.stream, "transport", channel.stream)
        clog(transport.socket.fileno())
        await cut_short(partial(send, channel, pattern(1000)), mock_clock if timed else None)
        drain(peer)
        await channel.send(b"works")
        assert drain(peer) == encoded([b"works"], "u32be")


@every_kind
@every_send
async def test_a_send_cancelled_before_it_began_breaks_nothing(kind: str, send: Any) -> None:
    async with connected(kind) as streams:
        sender, receiver = map(FrameStream, streams)
        await sender.send(b"an earlier one")
        with trio.CancelScope() as scope:
            scope.cancel()
            await send(sender, b"never sent")
        assert scope.cancelled_caught
        await sender.send(b"works")
        assert [await receiver.receive(), await receiver.receive()] == [b"an earlier one", b"works"]


@pytest.mark.uring_only("by readiness, a call knows at once what it has sent")
@every_send
async def test_a_destroyed_send_that_was_done_already_breaks_it(send: Any) -> None:
    """Its operation has sent a part, and its task has not resumed to learn of it."""
    for _ in range(30):  # in half of them, the task that destroys the call resumes first
        channel, peer = ring_channel(lambda stream: stream, TINY)
        first, second = unix_streams()
        async with closing(channel, peer, first, second):
            call = Call(send(channel, pattern(500_000)))

            async def destroy(call: Call = call, receiver: SocketStream = second) -> None:
                await receiver.receive_some()
                call.destroy()

            async def run(call: Call = call) -> None:
                await call

            await first.send_all(b"x")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                nursery.start_soon(destroy)
            assert call.destroyed
            if drain(peer):
                with pytest.raises(trio.BrokenResourceError):
                    await channel.send(b"next")
            assert drain(peer) == b""


async def test_a_stream_that_does_not_say_how_much_went_is_taken_to_have_sent_a_part() -> None:
    left, peer = unix_sockets(TINY)
    channel = FrameStream(trio.SocketStream(trio.socket.from_stdlib_socket(left)))
    async with closing(channel, peer):
        clog(left.fileno())
        await cut_short(partial(channel.send, b"x"), None)
        drain(peer)
        with pytest.raises(trio.BrokenResourceError, match="interrupted within a message"):
            await channel.send(b"next")


@every_send
async def test_an_error_of_the_connection_breaks_it(send: Any) -> None:
    channel, peer = ring_channel(WRAPS["stream"])
    async with closing(channel, peer):
        peer.close()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await send(channel, b"no one reads this")


@every_wrap
async def test_one_task_sends_at_a_time_and_the_other_is_told(wrap: Any) -> None:
    channel, peer = ring_channel(wrap, TINY)
    async with closing(channel, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.send, pattern(50_000))
            await wait_all_tasks_blocked()
            for call in (partial(channel.send, b"x"), partial(channel.send_many, [])):
                with pytest.raises(
                    trio.BusyResourceError,
                    match="another task is currently sending on this channel",
                ):
                    await call()
            got = b""
            while len(got) < 50_004:
                got += drain(peer)
                await trio.lowlevel.checkpoint()
        assert got == encoded([pattern(50_000)], "u32be")
        await channel.send(b"works")  # the error of the others broke nothing
        assert drain(peer) == encoded([b"works"], "u32be")


@every_wrap
@pytest.mark.parametrize("direction", ["send", "receive"])
async def test_closed_while_a_task_waits(wrap: Any, direction: str) -> None:
    channel, peer = ring_channel(wrap, TINY)
    async with closing(channel, peer):
        call = partial(channel.send, pattern(50_000)) if direction == "send" else channel.receive

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed)
            await wait_all_tasks_blocked()
            await channel.aclose()


# -- receives


@every_kind
@both_prefixes
@every_receive
@by_time
async def test_cut_short_after_every_byte(
    kind: str, prefix: Prefix, receive: Any, timed: bool, mock_clock: Clock
) -> None:
    payload = bytes(range(130))
    async with connected(kind) as (left, right):
        channel = FrameStream(right, prefix=prefix)
        for byte in encoded([payload], prefix):
            await cut_short(partial(receive, channel), mock_clock if timed else None)
            await left.send_all(bytes([byte]))
        assert await receive(channel) in (payload, [payload])


@every_receive
async def test_cancelled_with_messages_here_loses_none(receive: Any) -> None:
    peer = ScriptedReceiver([encoded([b"1", b"2", b"3"], "u32be")])
    channel = channel_over(peer)
    assert await channel.receive() == b"1"
    with trio.CancelScope() as scope:
        scope.cancel()
        await receive(channel)
    assert scope.cancelled_caught
    assert await channel.receive_many() == [b"2", b"3"]


@every_receive
async def test_one_task_receives_at_a_time(receive: Any) -> None:
    async with connected("ring") as (left, right):
        channel = FrameStream(right)
        got: list[Any] = []

        async def first() -> None:
            got.append(await receive(channel))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            for other in RECEIVES.values():
                with pytest.raises(
                    trio.BusyResourceError,
                    match="another task is currently receiving on this channel",
                ):
                    await other(channel)
            await left.send_all(encoded([b"x"], "u32be"))
        assert got in ([b"x"], [[b"x"]])


@pytest.mark.parametrize("kind", [kind for kind in PAIRS if kind != "tls"])
async def test_the_time_is_for_the_whole_message(kind: str, autojump_clock: Clock) -> None:
    async with connected(kind) as (left, right):
        channel = FrameStream(right)
        has_its_own = hasattr(right, "receive_timeout")
        if has_its_own:
            right.receive_timeout = 10

        async def drip() -> None:
            for byte in encoded([b"abc"], "u32be"):
                await trio.sleep(4)
                await left.send_all(bytes([byte]))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            for elapsed in (10, 20):
                with pytest.raises(trio.TooSlowError):
                    await channel.receive(timeout=None if has_its_own else 10)
                assert trio.current_time() - began == pytest.approx(elapsed, abs=0.001)
            assert await channel.receive(timeout=math.inf) == b"abc"


@pytest.mark.parametrize("kind", ["ring", "network", "trio network"])
@pytest.mark.parametrize("timeout", [100, math.inf])
async def test_a_calls_timeout_goes_before_the_streams(
    kind: str, timeout: float, autojump_clock: Clock
) -> None:
    async with connected(kind) as (left, right):
        right.receive_timeout = 10
        channel = FrameStream(right)

        async def late() -> None:
            for byte in encoded([b"a"], "u32be") * 2:
                await trio.sleep(15)
                await left.send_all(bytes([byte]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            assert await channel.receive(timeout=timeout) == b"a"
            assert await receive_frame(right, timeout=timeout) == b"a"


# -- any chunking, any cuts

messages = st.lists(
    st.one_of(
        st.binary(max_size=4), st.integers(0, 300).map(pattern), st.integers(0, 9000).map(pattern)
    ),
    max_size=10,
)


async def write(
    peer: trio.abc.SendStream, pieces: list[bytes], waits: list[int], cutter: Cutter
) -> None:
    for index, piece in enumerate(pieces):
        for _ in range(waits[index % len(waits)]):
            await trio.lowlevel.checkpoint()
        if piece:
            await peer.send_all(piece)
            cutter.peer_moved()
    await peer.aclose()


async def receive_cut(channel: FrameStream, schedule: list[Any], cutter: Cutter) -> list[bytes]:
    got: list[bytes] = []
    for many, cut in schedule:

        async def call(many: bool = many, **options: Any) -> list[bytes]:
            try:
                if not many:
                    return [await channel.receive(**options)]
                some = await channel.receive_many(**options)
            except trio.EndOfChannel:
                return []
            assert some
            return some

        got += await (call() if cut is None else cutter.run(cut, call)) or []
    return got + [message async for message in channel]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    sent=messages,
    sizes=chunk_sizes,
    waits=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    schedule=st.lists(st.tuples(st.booleans(), st.one_of(st.none(), cuts)), max_size=25),
    kind=st.sampled_from(["ring", "trio", "memory", "network", "unbuffered", "trio network"]),
    prefix=st.sampled_from(PREFIXES),
)
def test_no_message_is_lost_however_it_comes_and_whatever_is_cut_short(
    sent: list[bytes],
    sizes: list[int],
    waits: list[int],
    schedule: list[Any],
    kind: str,
    prefix: Prefix,
) -> None:
    async def main() -> None:
        async with connected(kind) as (left, right):
            channel, cutter = FrameStream(right, prefix=prefix), Cutter()
            pieces = cut_up(encoded(sent, prefix), sizes)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, left, pieces, waits, cutter)
                assert await receive_cut(channel, schedule, cutter) == sent

    checked_run(main)
