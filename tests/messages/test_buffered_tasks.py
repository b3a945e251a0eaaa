"""BufferedReceiveStream and the scheduler: checkpoints, cancels, timeouts, two tasks, close during
a call.

Rules: the wrapped stream is scripted. Time is a MockClock, which moves when nothing else can
(autojump_clock), or by hand.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.scripted import Late, ScriptedReceiver, until_resumed
from support.streams import closing, unix_sockets
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_uring import BufferedReceiveStream, DelimiterNotFound, IncompleteReadError, SocketStream

from .test_buffered import READS, every_read, unbuffered_too

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.testing import MockClock

    from .test_buffered import Reader


async def exactly_nothing(stream: BufferedReceiveStream, **options: Any) -> bytes:
    return await stream.receive_exactly(0, **options)


async def caught(
    read: Callable[[], Awaitable[Any]], kind: type[BaseException], into: list[BaseException]
) -> None:
    with pytest.raises(kind) as info:
        await read()
    into.append(info.value)


# -- checkpoints


@every_read
@unbuffered_too
async def test_every_read_is_a_checkpoint_also_when_the_bytes_are_here(
    read: Reader, buffer_size: int
) -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"abcd", b"<abcdabcd"]), buffer_size)
    with assert_checkpoints():
        assert b"abcd".startswith(await read(stream))
    stream = BufferedReceiveStream(ScriptedReceiver([b"<abcdabcd"]), 100)
    assert await stream.receive_some(1) == b"<"
    with assert_checkpoints():
        assert await read(stream) == b"abcd"
    with assert_checkpoints():
        assert await stream.receive_exactly(0) == b""
    with assert_checkpoints():
        assert await stream.receive_until(b"d", 4) == b"abcd"


@every_read
async def test_errors_are_found_at_a_checkpoint_when_the_bytes_are_here(read: Reader) -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"abcd"], ended=True))
    assert await stream.receive_some(1) == b"a"
    with assert_checkpoints(), pytest.raises(DelimiterNotFound):
        await stream.receive_until(b"\n", 2)
    with assert_checkpoints(), pytest.raises(IncompleteReadError):
        await stream.receive_until(b"\n", 20)
    with assert_checkpoints(), pytest.raises(IncompleteReadError):
        await stream.receive_exactly(20)
    await stream.receive_exactly(3)
    with assert_checkpoints():
        assert await stream.receive_some() == b""


@every_read
async def test_cancelled_with_the_bytes_here_loses_nothing(read: Reader) -> None:
    peer = ScriptedReceiver([b"<abcdefgh"])
    stream = BufferedReceiveStream(peer, 100)
    await stream.receive_exactly(1)
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await read(stream)
        assert scope.cancelled_caught
        assert stream.peek() == b"abcdefgh"
    assert await read(stream) == b"abcd"
    assert peer.requests == [100]


@every_read
async def test_no_time_at_all_is_enough_for_bytes_that_are_here_and_for_no_others(
    read: Reader,
) -> None:
    peer = ScriptedReceiver([b"<abcd", b"abcd"])
    stream = BufferedReceiveStream(peer, 100)
    await stream.receive_exactly(1)
    assert await read(stream, timeout=0) == b"abcd"
    with pytest.raises(trio.TooSlowError):
        await read(stream, timeout=0)
    assert peer.given == 5
    assert await read(stream) == b"abcd"


@every_read
@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_timeout_that_is_none_is_an_error_also_when_the_bytes_are_here(
    read: Reader, timeout: float
) -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"<abcd"]), 100)
    await stream.receive_exactly(1)
    with pytest.raises(ValueError, match="must"):
        await read(stream, timeout=timeout)


# -- two tasks


@every_read
@unbuffered_too
async def test_one_task_receives_at_a_time(read: Reader, buffer_size: int) -> None:
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, buffer_size)
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await read(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        for other in (*READS.values(), exactly_nothing):
            with pytest.raises(trio.BusyResourceError, match="another task is currently receiving"):
                await other(stream)
        assert len(peer.requests) == 1
        peer.arrive(b"abcd")
    assert b"abcd".startswith(got[0])
    peer.arrive(b"abcd")  # the direction is free again
    assert await stream.receive_some()


@every_read
@pytest.mark.parametrize("buffer_size", [0, 7])
async def test_closed_while_a_task_waits(read: Reader, buffer_size: int) -> None:
    for first in (b"", b"ab"):
        peer = ScriptedReceiver()
        stream = BufferedReceiveStream(peer, buffer_size)
        errors: list[BaseException] = []
        async with trio.open_nursery() as nursery:
            if read not in (READS["some"], READS["into"]):
                peer.arrive(first)
            nursery.start_soon(caught, partial(read, stream), trio.ClosedResourceError, errors)
            await wait_all_tasks_blocked()
            assert not errors
            await stream.aclose()
        assert len(errors) == 1
        assert peer.closed
        assert stream._queue.size == 0  # what the interrupted call had is not held for ever


@every_read
async def test_closed_by_another_task_at_the_checkpoint_of_a_call_that_has_its_bytes(
    read: Reader,
) -> None:
    stream = BufferedReceiveStream(ScriptedReceiver([b"<abcdefgh"]))
    await stream.receive_exactly(1)
    with pytest.raises(trio.ClosedResourceError):
        await until_resumed(read(stream), stream.aclose)


@every_read
async def test_what_comes_with_the_close_comes_too_late(read: Reader) -> None:
    peer = Late([b"abcd"])
    stream = BufferedReceiveStream(peer, 100)
    errors: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caught, partial(read, stream), trio.ClosedResourceError, errors)
        await wait_all_tasks_blocked()
        await stream.aclose()
    assert len(errors) == 1
    assert stream._queue.size == 0


async def test_after_close() -> None:
    peer = ScriptedReceiver([b"<abcd", b"efgh"])
    stream = BufferedReceiveStream(peer)
    await stream.receive_exactly(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
    assert peer.closed
    for read in (*READS.values(), exactly_nothing):
        with pytest.raises(trio.ClosedResourceError, match="already closed"):
            await read(stream)
        with pytest.raises(trio.ClosedResourceError, match="already closed"):
            await read(stream, timeout=5)
    with pytest.raises(trio.ClosedResourceError):
        stream.peek()
    assert len(peer.requests) == 1
    with assert_checkpoints():
        await stream.aclose()


# -- timeouts


@every_read
@unbuffered_too
@pytest.mark.parametrize("of_stream", [False, True])
async def test_timeouts(
    read: Reader, buffer_size: int, of_stream: bool, autojump_clock: MockClock
) -> None:
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, buffer_size, receive_timeout=10 if of_stream else None)
    options = {} if of_stream else {"timeout": 10}
    for _ in range(2):
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await read(stream, **options)
        assert trio.current_time() - began == pytest.approx(10)
    peer.arrive(b"abcd")
    assert b"abcd".startswith(await read(stream, **options))


@pytest.mark.parametrize("name", ["exactly", "until"])
@unbuffered_too
async def test_a_timeout_is_of_the_whole_call_and_loses_nothing(
    name: str, buffer_size: int, autojump_clock: MockClock
) -> None:
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, buffer_size)

    async def drip() -> None:
        for byte in b"abc":
            peer.arrive(bytes([byte]))
            await trio.sleep(4)
        peer.arrive(b"d")

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        with pytest.raises(trio.TooSlowError):
            await READS[name](stream, timeout=10)  # three bytes came, each in time
        assert trio.current_time() - began == pytest.approx(10)
        assert stream.peek() == (b"abc" if buffer_size else b"")
        assert await READS[name](stream, timeout=10) == b"abcd"


@every_read
@pytest.mark.parametrize("timeout", [100, math.inf])
async def test_a_calls_timeout_goes_before_the_streams(
    read: Reader, timeout: float, autojump_clock: MockClock
) -> None:
    peer = ScriptedReceiver()
    stream = BufferedReceiveStream(peer, receive_timeout=10)

    async def late() -> None:
        await trio.sleep(50)
        peer.arrive(b"abcd")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        assert await read(stream, timeout=timeout) == b"abcd"


async def test_a_scope_around_the_call_is_cancelled_and_not_too_slow(
    autojump_clock: MockClock,
) -> None:
    stream = BufferedReceiveStream(ScriptedReceiver(), receive_timeout=10)
    with trio.move_on_after(5) as scope:
        await stream.receive_exactly(1)
    assert scope.cancelled_caught


@pytest.mark.parametrize("name", ["exactly", "until"])
async def test_the_default_of_the_wrapped_stream_is_for_the_whole_call(
    name: str, autojump_clock: MockClock
) -> None:
    ours, peer = unix_sockets()
    receiver = SocketStream(ours)
    receiver.receive_timeout = 10
    stream = BufferedReceiveStream(receiver)
    async with closing(stream, peer), trio.open_nursery() as nursery:

        async def drip() -> None:
            for byte in b"abcd":
                await trio.sleep(4)
                peer.send(bytes([byte]))

        nursery.start_soon(drip)
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await READS[name](stream)
        assert trio.current_time() - began == pytest.approx(10)
        assert await READS[name](stream) == b"abcd"


@every_read
async def test_no_limit_is_none_over_a_stream_that_has_its_own(
    read: Reader, autojump_clock: MockClock
) -> None:
    ours, peer = unix_sockets()
    receiver = SocketStream(ours)
    receiver.receive_timeout = 10
    stream = BufferedReceiveStream(receiver, 2)
    async with closing(stream, peer), trio.open_nursery() as nursery:

        async def late() -> None:
            await trio.sleep(50)
            peer.send(b"abcd")

        nursery.start_soon(late)
        assert b"abcd".startswith(await read(stream, timeout=math.inf))
