"""Timeouts of a stream and of a call, for the whole call, with an exact count of what was sent
before.

Rules: time is trio's MockClock, moved by hand, so that a timeout fires when the test says so and at
no other time; one test uses the real clock, and nothing in it depends on how long anything takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import TINY, clog, closing, drain, passes, pattern, unix_sockets, until_blocked

from trio_uring import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

RECEIVES: dict[str, Callable[..., Awaitable[Any]]] = {
    "some": lambda stream, **options: stream.receive_some(**options),
    "some of at most": lambda stream, **options: stream.receive_some(10, **options),
    "into": lambda stream, **options: stream.receive_into(bytearray(10), **options),
    "exactly": lambda stream, **options: stream.receive_exactly(10, **options),
}


class Call:
    """A call that runs in a task, and what came of it."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[Any]]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = trio.Event()
        nursery.start_soon(self._run, call)

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.result = await call()
        except trio.TooSlowError as exc:
            self.error = exc
        self.ended.set()

    async def still_blocked(self, fd: int) -> None:
        await passes(5)
        await until_blocked(fd)
        assert not self.ended.is_set()

    async def too_slow(self) -> None:
        await self.ended.wait()
        assert isinstance(self.error, trio.TooSlowError)


def clogged() -> tuple[SocketStream, Any, int]:
    left, right = unix_sockets(TINY)
    return SocketStream(left), right, clog(left.fileno())


async def test_send_timeout_of_the_stream(mock_clock: MockClock) -> None:
    stream, peer, _ = clogged()
    stream.send_timeout = 10
    async with closing(stream, peer), trio.open_nursery() as nursery:
        call = Call(nursery, lambda: stream.send_all(b"late"))
        await call.still_blocked(stream.socket.fileno())
        mock_clock.jump(9.9)
        await call.still_blocked(stream.socket.fileno())
        mock_clock.jump(0.2)
        await call.too_slow()
        assert stream.bytes_sent == 0
        drain(peer)
        await stream.send_all(b"again")
        assert drain(peer) == b"again"


async def test_send_timeout_covers_all_partial_writes_and_bytes_sent_is_exact(
    mock_clock: MockClock,
) -> None:
    left, peer = unix_sockets(TINY)
    stream, data, got = SocketStream(left), pattern(500_000), b""
    async with closing(stream, peer), trio.open_nursery() as nursery:
        call = Call(nursery, lambda: stream.send_all([data[:70_000], data[70_000:]], timeout=10))
        for _ in range(3):  # it goes on and on, and every part of it is fast
            await call.still_blocked(left.fileno())
            mock_clock.jump(3)
            got += drain(peer)
        await call.still_blocked(left.fileno())
        mock_clock.jump(3)
        await call.too_slow()
        got += drain(peer)
        assert 0 < stream.bytes_sent < len(data)
        assert got == data[: stream.bytes_sent]
        second = Call(nursery, lambda: stream.send_all(data[stream.bytes_sent :]))
        while not second.ended.is_set():
            got += drain(peer)
            await trio.lowlevel.checkpoint()
        got += drain(peer)
        assert got == data


@pytest.mark.parametrize("timeout", [100, math.inf])
async def test_a_calls_timeout_goes_before_the_streams(
    mock_clock: MockClock, timeout: float
) -> None:
    stream, peer, _ = clogged()
    stream.send_timeout = stream.receive_timeout = 1
    async with closing(stream, peer), trio.open_nursery() as nursery:
        send = Call(nursery, lambda: stream.send_all(b"late", timeout=timeout))
        receive = Call(nursery, lambda: stream.receive_some(timeout=timeout))
        await until_blocked(stream.socket.fileno(), 2)
        mock_clock.jump(50)
        await passes(5)
        await until_blocked(stream.socket.fileno(), 2)
        drain(peer)
        peer.send(b"reply")
        await send.ended.wait()
        await receive.ended.wait()
        assert (send.error, receive.error, receive.result) == (None, None, b"reply")


@pytest.mark.parametrize("name", RECEIVES)
@pytest.mark.parametrize("of_stream", [False, True])
async def test_receive_timeouts(mock_clock: MockClock, name: str, of_stream: bool) -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    options = {} if of_stream else {"timeout": 10}
    stream.receive_timeout = 10 if of_stream else None
    async with closing(stream, peer), trio.open_nursery() as nursery:
        call = Call(nursery, lambda: RECEIVES[name](stream, **options))
        await call.still_blocked(left.fileno())
        mock_clock.jump(9.9)
        await call.still_blocked(left.fileno())
        mock_clock.jump(0.2)
        await call.too_slow()
        peer.send(b"0123456789")
        assert await stream.receive_exactly(10) == b"0123456789"


async def test_receive_exactly_times_out_as_a_whole_and_keeps_what_came(
    mock_clock: MockClock,
) -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer), trio.open_nursery() as nursery:
        call = Call(nursery, lambda: stream.receive_exactly(10, timeout=10))
        for part in (b"ab", b"cd", b"ef"):
            await call.still_blocked(left.fileno())
            mock_clock.jump(3)
            peer.send(part)
        await call.still_blocked(left.fileno())
        mock_clock.jump(3)
        await call.too_slow()
        assert await stream.receive_exactly(3) == b"abc"
        assert await stream.receive_exactly(3) == b"def"


async def test_no_time_at_all_is_too_slow_and_moves_nothing() -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    peer.send(b"here")
    async with closing(stream, peer):
        for receive in RECEIVES.values():
            with pytest.raises(trio.TooSlowError):
                await receive(stream, timeout=0)
        await stream.send_all(b"before")
        for data in (b"x", bytearray(b"x"), [b"x", b"y"], b""):
            with pytest.raises(trio.TooSlowError):
                await stream.send_all(data, timeout=0)
            assert stream.bytes_sent == 0
        assert drain(peer) == b"before"
        assert await stream.receive_some() == b"here"


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_impossible_timeouts(timeout: float) -> None:
    left, peer = unix_sockets()
    stream = SocketStream(left)
    async with closing(stream, peer):
        with pytest.raises(ValueError, match="must"):
            await stream.send_all(b"x", timeout=timeout)
        with pytest.raises(ValueError, match="must"):
            await stream.receive_some(timeout=timeout)
        assert drain(peer) == b""


async def test_a_scope_around_the_call_is_cancelled_and_not_too_slow(mock_clock: MockClock) -> None:
    stream, peer, _ = clogged()
    async with closing(stream, peer), trio.open_nursery() as nursery:
        scope = trio.move_on_after(5)

        async def send() -> None:
            with scope:
                await stream.send_all(b"x", timeout=10)

        call = Call(nursery, send)
        await call.still_blocked(stream.socket.fileno())
        mock_clock.jump(6)
        await call.ended.wait()
        assert scope.cancelled_caught
        assert call.error is None


async def test_on_the_real_clock() -> None:
    stream, peer, _ = clogged()
    async with closing(stream, peer):
        with pytest.raises(trio.TooSlowError):
            await stream.send_all(b"x", timeout=0.01)
        assert stream.bytes_sent == 0
        with pytest.raises(trio.TooSlowError):
            await stream.receive_some(timeout=0.01)
        drain(peer)
        await stream.send_all(b"y", timeout=3600)
        assert drain(peer) == b"y"
