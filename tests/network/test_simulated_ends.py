"""How connections of the simulated network end: TCP's rules, and trio's for streams.

Rules of this file: those of support/simulated.py.
"""

from __future__ import annotations

import array
import errno
import functools

import pytest
import trio
import trio.testing
from support.simulated import (
    WHOLE,
    broken_by,
    elapsed,
    fails_closed,
    fails_with,
    pair_of,
    simulated,
    transports,
)
from support.streams import receive_all

from trio_uring._network.network import NetworkConfig
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically

pytestmark = pytest.mark.no_ring


# -- ends, closes and resets


@simulated
async def test_data_then_the_end_after_a_close():
    first, second = await transports(latency=1.0)
    await first.send_all(bytes(10000))
    await first.aclose()
    assert len(await receive_all(second)) == 10000
    assert await second.receive_some() == b""
    assert len(first._path.ends) == 2
    await second.aclose()
    assert first._path.ends == {}


@pytest.mark.parametrize("again", ["send_eof", "aclose"])
@pytest.mark.parametrize("latency", [0.0, 1.0])
@simulated
async def test_the_end_wakes_a_receive_that_waits(latency, again):
    first, second = await transports(latency=latency)
    async with trio.open_nursery() as nursery:
        start = elapsed()
        nursery.start_soon(ends_now, second)
        await trio.testing.wait_all_tasks_blocked()
        await first.send_eof()
        await trio.sleep(latency / 2)
        await getattr(first, again)()  # changes nothing of when it ends
    assert elapsed() == start + latency


async def ends_now(stream: trio.abc.ReceiveStream) -> None:
    assert await stream.receive_some() == b""


@simulated
async def test_a_half_closed_connection_still_receives():
    first, second = await transports()
    await first.send_eof()
    assert await second.receive_some() == b""
    await second.send_all(b"answer")
    await second.aclose()
    assert await receive_all(first) == b"answer"
    with pytest.raises(trio.ClosedResourceError):
        await first.send_all(b"")


@simulated
async def test_a_send_to_a_closed_end_is_answered_with_a_reset_after_a_round_trip():
    first, second = await transports(latency=1.0, **WHOLE)
    start = elapsed()
    await second.aclose()
    await first.send_all(b"x")
    assert await first.receive_some() == b""  # the end, a second later
    await trio.sleep(0.5)
    await first.send_all(b"y")
    await trio.sleep_until(start + 2)
    for _ in range(2):
        with broken_by(errno.EPIPE):
            await first.send_all(b"z")
        with broken_by(errno.EPIPE):
            await first.wait_send_all_might_not_block()
        with broken_by(errno.EPIPE):
            await first.send_eof()
        assert await first.receive_some() == b""  # once at the end, always


@simulated
async def test_a_close_with_unread_bytes_resets():
    first, second = await transports(latency=1.0, **WHOLE)
    await first.send_all(b"never received")
    await second.send_all(b"nor this")
    await trio.sleep(1)
    await second.aclose()
    await trio.sleep(1)
    for _ in range(2):
        with broken_by(errno.ECONNRESET):
            await first.receive_some()
        with broken_by(errno.ECONNRESET):
            await first.send_all(b"x")
    assert first.incoming.size == 0
    assert not first._path.ends


@simulated
async def test_bytes_that_arrive_after_a_close_are_answered_with_a_reset():
    first, second = await transports(latency=1.0, **WHOLE)
    start = elapsed()
    await first.send_all(b"in flight")
    await second.send_all(b"answer")
    await second.aclose()
    assert await first.receive_some() == b"answer"
    assert await first.receive_some() == b""
    await trio.sleep_until(start + 1.5)
    await first.send_all(b"x")
    await trio.sleep_until(start + 2)
    with broken_by(errno.EPIPE):
        await first.send_all(b"x")


@pytest.mark.parametrize(("linger", "code"), [(0, errno.ECONNRESET), (5, None), (None, None)])
@simulated
async def test_so_linger_0_resets(linger, code):
    first, second = await pair_of(SimulatedNetwork(config=NetworkConfig(so_linger=linger)))
    await first.send_all(b"last words")
    await first.aclose()
    if code is None:
        assert await receive_all(second) == b"last words"
    else:
        with broken_by(code):
            await receive_all(second)


@simulated
async def test_a_blocked_sender_wakes_when_the_other_end_closes():
    first, second = await transports(buffer_size=100, latency=1.0)
    start = elapsed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails_with, errno.ECONNRESET, first.send_all, bytes(1000))
        await trio.sleep(2)
        await second.aclose()
    assert elapsed() == start + 3


@pytest.mark.parametrize("cancelled", [False, True])
@simulated
async def test_close_wakes_the_tasks_of_its_own_stream(cancelled):
    first, second = await transports(buffer_size=100)
    await first.send_all(bytes(100))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails_closed, first.send_all, b"x")
        nursery.start_soon(fails_closed, first.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await first.aclose()
        assert scope.cancelled_caught == cancelled
    await fails_closed(first.receive_some)
    await fails_closed(first.send_eof)
    await second.aclose()


def test_a_close_counts_what_a_receive_has_in_its_hands_as_not_received():
    async def main(seed: int) -> bool:
        first, second = await transports(seed=seed, race=1.0)
        await first.send_all(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_closed, second.receive_some)
            await trio.lowlevel.checkpoint()
            taken = second._taken == 1
            await second.aclose()
        with broken_by(errno.ECONNRESET):
            await first.receive_some()
        return taken

    assert True in [run_deterministically(main, seed, seed=seed) for seed in range(10)]


@simulated
async def test_one_task_a_direction():
    first, _ = await transports(buffer_size=1)
    await first.send_all(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.send_all, b"y")
        nursery.start_soon(first.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        for call in (first.receive_some, first.send_eof, first.wait_send_all_might_not_block):
            with pytest.raises(trio.BusyResourceError):
                await call()
        for data in (b"", b"x", [b"x", b"y"]):
            with pytest.raises(trio.BusyResourceError):
                await first.send_all(data)
        nursery.cancel_scope.cancel()
    assert first.bytes_sent == 0


@simulated
async def test_every_call_is_a_checkpoint_and_what_is_cancelled_does_nothing():
    first, second = await transports()
    for call in (
        functools.partial(first.send_all, b""),
        functools.partial(first.send_all, b"abc"),
        functools.partial(first.send_all_vectored, [b"d", b"e"]),
        functools.partial(second.receive_some, 1),
        first.wait_send_all_might_not_block,
        first.send_eof,
        first.send_eof,
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
        with trio.testing.assert_checkpoints():
            await call()
    rest = await receive_all(second)
    assert rest == b"bcde"
    with trio.testing.assert_checkpoints():
        assert await second.receive_some() == b""
    for _ in range(2):
        with trio.testing.assert_checkpoints():
            await second.aclose()


@simulated
async def test_buffers_of_any_kind_are_let_go():
    first, second = await transports(buffer_size=64, **WHOLE)
    grown = bytearray(b"abc")
    await first.send_all([grown, array.array("H", [258, 772]), memoryview(b"xyz")[1:], b""])
    grown += b"!"
    with trio.move_on_after(1):
        await first.send_all(grown := bytearray(100))
    grown += b"!"
    await first.send_eof()
    assert (await receive_all(second))[:9] == b"abc" + array.array(
        "H", [258, 772]
    ).tobytes() + b"yz"
    for wrong in ("text", [b"x", 1], 5):
        with pytest.raises(TypeError):
            await second.send_all(wrong)
    with pytest.raises(trio.TooSlowError):
        await second.send_all_vectored([bytes(100)], timeout=1)
