"""Connections of the simulated network: trio's own suites, exact times, bounded buffers, and where
every byte is.

Rules of this file: those of support/simulated.py.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.simulated import WHOLE, elapsed, pair_of, simulated, transports
from support.streams import receive_all

from trio_uring._network.network import NetworkConfig
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically

pytestmark = pytest.mark.no_ring


# -- trio's own suites

OPTIONS = [
    pytest.param({}, id="default"),
    pytest.param({"short": 1.0, "race": 1.0}, id="worst"),
    pytest.param({"latency": (0.01, 0.1)}, id="latency"),
    pytest.param(
        {"bandwidth": 1e6, "latency": 0.1, "config": NetworkConfig(read_buffer_size=0)},
        id="bandwidth",
    ),
]


@pytest.mark.parametrize("over", ["transports", "streams"])
@pytest.mark.parametrize("options", OPTIONS)
def test_trios_checks(options, over):
    async def maker(buffer_size: int = 65536) -> tuple[Any, Any]:
        network = SimulatedNetwork(buffer_size=buffer_size, **options)
        ends = await pair_of(network)
        return ends if over == "streams" else tuple(end.transport for end in ends)

    async def clogged() -> tuple[Any, Any]:
        ends = await maker(1000)
        for end in ends:
            await end.send_all(bytes(1000))
        return ends

    for check in (trio.testing.check_one_way_stream, trio.testing.check_half_closeable_stream):
        run_deterministically(check, maker, clogged)


# -- times


@simulated
async def test_a_message_takes_one_latency_and_a_dial_two():
    first, second = await pair_of(SimulatedNetwork(latency=0.5, **WHOLE))
    assert elapsed() == 1.0
    await first.send_all(b"there")
    assert elapsed() == 1.0
    assert await second.receive_some() == b"there"
    assert elapsed() == 1.5
    await second.send_all(b"back")
    await second.send_eof()
    assert await first.receive_some() == b"back"
    assert await first.receive_some() == b""
    assert elapsed() == 2.0


@simulated
async def test_bandwidth_is_time_on_the_wire_in_each_direction():
    first, second = await pair_of(SimulatedNetwork(latency=0.25, bandwidth=1024, **WHOLE))
    start = elapsed()
    for _ in range(4):
        await first.send_all(bytes(512))
    await second.send_all(bytes(256))
    arrivals = []
    for _ in range(4):
        await second.receive_exactly(512)
        arrivals.append(elapsed() - start)
    assert arrivals == [0.75, 1.25, 1.75, 2.25]
    await first.receive_exactly(256)  # was there at 0.5
    assert elapsed() - start == 2.25


@simulated
async def test_an_idle_wire_saves_nothing_up():
    first, second = await pair_of(SimulatedNetwork(bandwidth=1024, **WHOLE))
    await trio.sleep(10)
    await first.send_all(bytes(1024))
    await second.receive_exactly(1024)
    assert elapsed() == 11.0


@simulated
async def test_a_range_of_latencies_is_drawn_for_each_message():
    first, second = await pair_of(SimulatedNetwork(latency=(1.0, 2.0)))
    travelled = []
    for _ in range(20):
        start = elapsed()
        await first.send_all(b"x")
        await second.receive_some()
        travelled.append(elapsed() - start)
    assert len(set(travelled)) == 20
    assert 1 <= min(travelled) < 1.3 < 1.7 < max(travelled) <= 2


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 3000), max_size=30))
def test_a_range_of_latencies_keeps_the_order(seed, sizes):
    async def main() -> None:
        first, second = await pair_of(SimulatedNetwork(seed, latency=(0.0, 5.0)))
        data = random.Random(seed).randbytes(sum(sizes))
        start = elapsed()
        view = memoryview(data)
        for size in sizes:
            await first.send_all(view[:size])
            view = view[size:]
        await first.send_eof()
        assert elapsed() == start or sum(sizes) > 65536
        assert await receive_all(second) == data
        assert elapsed() <= start + 5.0 or sum(sizes) > 65536

    run_deterministically(main, seed=seed)


# -- bounded buffers


@pytest.mark.parametrize("latency", [0.0, 0.5])
@pytest.mark.parametrize("size", [1, 7, 4096])
@simulated
async def test_never_more_than_the_buffer_is_under_way(size, latency):
    first, second = await transports(buffer_size=size, latency=latency)
    pipe, data, highest, parts = second.incoming, random.Random(size).randbytes(10 * size), 0, []

    class Watch(trio.abc.Instrument):
        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal highest
            highest = max(highest, pipe.size)
            in_flight = sum(len(chunk) for _, chunk in pipe._flight)
            assert in_flight + pipe.arrived.size + second._taken == pipe.size

    watch = Watch()
    trio.lowlevel.add_instrument(watch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.send_all, data)
        await trio.testing.wait_all_tasks_blocked()
        assert pipe.size == first.bytes_sent == size
        while sum(map(len, parts)) < len(data):
            parts.append(await second.receive_some(max(1, size // 3)))
    trio.lowlevel.remove_instrument(watch)
    assert b"".join(parts) == data
    assert highest == size
    assert pipe.size == 0


@simulated
async def test_room_is_given_back_when_the_receive_returns():
    first, second = await transports(buffer_size=10, **WHOLE)
    await first.send_all(bytes(10))
    with trio.move_on_after(1) as scope:
        await first.wait_send_all_might_not_block()
    assert scope.cancelled_caught
    await second.receive_some(1)
    await first.wait_send_all_might_not_block()
    await first.send_all(b"x")


# -- cancelled calls


@simulated
async def test_a_cancelled_send_has_sent_exactly_bytes_sent():
    first, second = await transports(buffer_size=1000)
    data = random.Random(1).randbytes(5000)
    with trio.move_on_after(1) as scope:
        await first.send_all([data[:700], bytearray(), memoryview(data)[700:900], data[900:]])
    assert scope.cancelled_caught
    assert first.bytes_sent == 1000
    await first.send_eof()
    assert await receive_all(second) == data[:1000]


def test_a_short_write_can_be_cancelled_with_room_left():
    sent = {run_deterministically(_cancel_within_a_send, seed, seed=seed) for seed in range(20)}
    assert sent - {0, 60000}


async def _cancel_within_a_send(seed: int) -> int:
    first, second = await transports(seed=seed, short=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.send_all, bytes(60000))
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await first.send_eof()
    assert len(await receive_all(second)) == first.bytes_sent
    return first.bytes_sent


def test_a_receive_cancelled_with_bytes_in_its_hands_puts_them_back():
    async def main(seed: int) -> bool:
        first, second = await transports(seed=seed, race=1.0)
        await first.send_all(b"0123456789")
        taken = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.receive_some, 4)
            await trio.lowlevel.checkpoint()
            taken = second._taken > 0
            assert second.incoming.size == 10  # the room is not the sender's yet
            nursery.cancel_scope.cancel()
        await first.send_eof()
        assert await receive_all(second) == b"0123456789"
        return taken

    assert True in [run_deterministically(main, seed, seed=seed) for seed in range(10)]


@given(
    seed=st.integers(0, 2**32),
    buffer_size=st.integers(1, 3000),
    latency=st.sampled_from([0.0, 0.01, (0.0, 0.02)]),
    bandwidth=st.sampled_from([None, 1e5]),
    sizes=st.lists(st.integers(0, 2500), max_size=12),
    patience=st.tuples(st.floats(0, 0.03), st.floats(0, 0.03)),
)
def test_cancels_on_both_sides_lose_and_duplicate_nothing(
    seed, buffer_size, latency, bandwidth, sizes, patience
):
    async def main() -> None:
        network = SimulatedNetwork(
            seed, latency=latency, bandwidth=bandwidth, buffer_size=buffer_size, short=0.5, race=0.5
        )
        first, second = (end.transport for end in await pair_of(network))
        draw = random.Random(seed)
        sent, received = bytearray(), bytearray()

        async def impatiently(seconds: float, function: Any, *args: Any) -> Any:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    if draw.random() < 0.5:
                        scope.deadline = trio.current_time() + draw.uniform(0, seconds)
                    else:  # within this pass or one of the next
                        nursery.start_soon(cancel_after_passes, scope, draw.randrange(4))
                    result = await function(*args)
                    nursery.cancel_scope.cancel()
                    return result
            return b""

        async def send() -> None:
            for size in sizes:
                data = draw.randbytes(size)
                await impatiently(patience[0], first.send_all, data)
                sent.extend(data[: first.bytes_sent])
            await first.send_eof()

        async def receive() -> None:
            while not second._ended:
                received.extend(
                    await impatiently(patience[1], second.receive_some, draw.randint(1, 4000))
                )
                await trio.sleep(draw.choice([0.0, 0.001]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
        assert received == sent

    run_deterministically(main, seed=seed)


async def cancel_after_passes(scope: trio.CancelScope, passes: int) -> None:
    for _ in range(passes):
        await trio.lowlevel.checkpoint()
    scope.cancel()
