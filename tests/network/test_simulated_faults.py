"""Partitions and resets of the simulated network.

Rules of this file: those of support/simulated.py.
"""

from __future__ import annotations

import errno
import itertools
import random
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support.simulated import (
    WHOLE,
    after,
    broken_by,
    elapsed,
    pair_of,
    simulated,
    transports,
)

from trio_uring._network.network import NetworkConfig
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically

pytestmark = pytest.mark.no_ring


# -- partitions and resets


@simulated
async def test_a_partition_holds_what_has_not_arrived():
    network = SimulatedNetwork(latency=1.0, **WHOLE)
    first, second = await pair_of(network)
    start = trio.current_time()
    await first.send_all(b"arrived")
    await trio.sleep(1)
    await first.send_all(b" in flight")
    await trio.sleep(0.5)
    network.partition("a", "b")
    await first.send_all(b" meanwhile")
    await first.send_eof()
    assert await second.receive_exactly(7) == b"arrived"
    with pytest.raises(trio.TooSlowError):
        await second.receive_some(timeout=8.5)
    assert trio.current_time() - start == 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 1, network.heal, "b", "a")
        assert await second.receive_exactly(20) == b" in flight meanwhile"
        assert trio.current_time() - start == 12
    assert await second.receive_some() == b""
    await second.send_all(b"back")
    await first.receive_exactly(4)
    assert trio.current_time() - start == 13


@simulated
async def test_what_was_stopped_sets_out_anew():
    """4 s of bytes are on the wire at the cut, 3 s of them at the heal."""
    network = SimulatedNetwork(latency=0.5, bandwidth=1024, **WHOLE)
    first, second = await pair_of(network)
    start = elapsed()
    for _ in range(4):
        await first.send_all(bytes(1024))
    await trio.sleep(1.75)
    network.partition("a", "b")
    await trio.sleep(0.25)
    network.heal("a", "b")
    arrivals = []
    for _ in range(4):
        await second.receive_exactly(1024)
        arrivals.append(elapsed() - start)
    assert arrivals == [2.0, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("linger", [0, None])
@simulated
async def test_an_end_or_a_reset_in_flight_is_stopped(linger):
    network = SimulatedNetwork(latency=1.0, config=NetworkConfig(so_linger=linger))
    first, second = await pair_of(network)
    start = elapsed()
    await second.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 0.5, network.partition, "a", "b")
        nursery.start_soon(after, 5, network.heal, "a", "b")
        if linger == 0:
            with broken_by(errno.ECONNRESET):
                await first.receive_some()
        else:
            assert await first.receive_some() == b""
        assert elapsed() == start + 6


@simulated
async def test_what_has_arrived_is_not_stopped():
    network = SimulatedNetwork(latency=1.0)
    first, second = await pair_of(network)
    for end in (first, second):
        await end.send_all(b"x")
    await second.send_eof()
    await trio.sleep(1)
    network.partition("a", "b")
    start = elapsed()
    assert await second.receive_some() == b"x"
    assert await first.receive_some() == b"x"
    assert await first.receive_some() == b""
    assert elapsed() == start


@simulated
async def test_a_short_cut_costs_a_dial_its_message():
    network = SimulatedNetwork(latency=1.0)
    await network.bind(("server", 80))

    def cut_and_heal() -> None:
        network.partition("127.0.0.1", "server")
        network.heal("127.0.0.1", "server")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 0.5, cut_and_heal)
        await network.dial(("server", 80))
    assert elapsed() == 2.5


@simulated
async def test_a_partition_is_between_two_hosts_or_groups():
    network = SimulatedNetwork(config=NetworkConfig(connect_timeout=1))
    first, second = await pair_of(network, "a", "b")
    third, fourth = await pair_of(network, "c", "d")
    network.partition(["a", "c"], {"b"})
    await third.send_all(b"x")
    assert await fourth.receive_some() == b"x"
    await first.send_all(b"x")
    with pytest.raises(trio.TooSlowError):
        await second.receive_some(timeout=1)
    await network.host("b").bind(("b", 80))
    for host in ("a", "c"):
        with pytest.raises(trio.TooSlowError):
            await network.host(host).dial(("b", 80))
    await network.host("d").dial(("b", 80))
    network.heal("a", "b")
    network.heal("a", "b")
    assert await second.receive_some() == b"x"


@pytest.mark.parametrize("cut_after", [0.0, 0.5, 1.5])
@simulated
async def test_a_dial_waits_for_the_heal(cut_after):
    network = SimulatedNetwork(latency=1.0)
    await network.bind(("server", 80))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, cut_after, network.partition, "127.0.0.1", "server")
        nursery.start_soon(after, 5, network.heal, "localhost", "server")
        if not cut_after:
            await trio.testing.wait_all_tasks_blocked()
        await network.dial(("server", 80))
        assert trio.current_time() == 7


@simulated
async def test_room_in_a_backlog_does_not_cross_a_cut():
    network = SimulatedNetwork(latency=1.0, config=NetworkConfig(backlog=1))
    listener = await network.bind(("server", 80))
    await network.dial(("server", 80))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.dial, ("server", 80))
        await trio.sleep(3)
        network.partition("127.0.0.1", "server")
        await listener.accept()
        nursery.start_soon(after, 5, network.heal, "127.0.0.1", "server")
        await listener.accept()
        assert elapsed() == 12


@simulated
async def test_a_close_during_a_partition_is_seen_after_it():
    network = SimulatedNetwork(latency=1.0, **WHOLE)
    first, second = await pair_of(network)
    await first.send_all(b"in flight")
    network.partition("a", "b")
    await second.aclose()
    await trio.sleep(10)
    await first.send_all(b"not yet")
    network.heal("a", "b")
    start = trio.current_time()
    assert await first.receive_some() == b""
    await trio.sleep_until(start + 1.5)
    await first.send_all(b"not yet")
    await trio.sleep_until(start + 2)
    with broken_by(errno.EPIPE):
        await first.send_all(b"x")


@simulated
async def test_a_reset_during_a_partition_arrives_after_it():
    network = SimulatedNetwork(latency=1.0, config=NetworkConfig(so_linger=0))
    first, second = await pair_of(network)
    network.partition("a", "b")
    await second.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 5, network.heal, "a", "b")
        start = trio.current_time()
        with broken_by(errno.ECONNRESET):
            await first.receive_some()
        assert trio.current_time() - start == 6


@given(seed=st.integers(0, 2**32), times=st.lists(st.floats(0.001, 1), max_size=10))
def test_partitions_lose_and_duplicate_nothing(seed, times):
    async def main() -> None:
        network = SimulatedNetwork(seed, latency=(0.0, 0.5), bandwidth=5000, buffer_size=1000)
        first, second = await pair_of(network)
        data = random.Random(seed).randbytes(10000)

        async def send() -> None:
            await first.send_all(data)
            await first.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for number, seconds in enumerate(itertools.accumulate(times)):
                change = network.heal if number % 2 else network.partition
                nursery.start_soon(after, seconds, change, "a", "b")
            nursery.start_soon(after, 20, network.heal, "a", "b")
            assert b"".join([chunk async for chunk in second]) == data

    run_deterministically(main, seed=seed)


@pytest.mark.parametrize("how", ["hosts", "stream"])
@simulated
async def test_a_reset_breaks_both_ends_at_once(how):
    network = SimulatedNetwork(latency=1.0, buffer_size=100)
    first, second = await pair_of(network)
    other, _ = await pair_of(network, "c", "b")
    await first.send_all(bytes(100))
    await trio.sleep(2)
    await second.transport.receive_some(1)

    async def breaks(function: Any, *args: Any) -> None:
        with broken_by(errno.ECONNRESET):
            await function(*args)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(breaks, first.send_all, b"xx")
        nursery.start_soon(breaks, first.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        if how == "hosts":
            network.reset("b", "a")
        else:
            second.transport.reset()
        await breaks(second.receive_some)
    assert trio.current_time() == start
    assert second.transport.incoming.size == second.transport.incoming.arrived.size == 0
    assert not first.transport._path.ends
    for end in (first, second):
        await breaks(end.receive_some)
        await breaks(end.send_all, b"")
        await breaks(end.send_eof)
        await end.aclose()
    await other.send_all(b"not concerned")
    assert other.transport._path.ends


def test_a_reset_does_not_take_what_a_receive_has_in_its_hands():
    async def main(seed: int) -> bool:
        first, second = await transports(seed=seed, race=1.0)
        received = []

        async def receive() -> None:
            received.append(await second.receive_some(1))

        await first.send_all(b"xyz")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.lowlevel.checkpoint()
            taken = second._taken == 1
            if not taken:
                await trio.testing.wait_all_tasks_blocked()
            first.reset()
        assert received == [b"x"]
        assert second.incoming.size == 0
        with broken_by(errno.ECONNRESET):
            await second.receive_some()
        return taken

    assert True in [run_deterministically(main, seed, seed=seed) for seed in range(10)]


# -- whom a fault hits


@pytest.mark.parametrize("fault", ["partition", "heal", "reset", "refuse"])
@simulated
async def test_a_fault_that_would_hit_nothing_is_an_error(fault):
    network = SimulatedNetwork()
    await network.bind(("server", 80))
    wrong: list[Any] = [("server", "typo"), ("typo", ["server"]), ("server", [])]
    if fault == "refuse":
        wrong = [[("typo", 80)]]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"It knows 127\.0\.0\.1, server"):
            getattr(network, fault)(*arguments)
    await network.dial(("server", 80))  # and nothing was hit


@pytest.mark.parametrize("known_by", ["host", "bind", "dial", "view"])
@simulated
async def test_a_host_is_known_once_somebody_names_it(known_by):
    network = SimulatedNetwork()
    if known_by == "host":
        network.host("server")
    elif known_by == "bind":
        await network.bind(("server", 80))
    elif known_by == "view":
        await network.host("server").bind(("0.0.0.0", 80))
    else:
        with pytest.raises(ConnectionRefusedError):
            await network.dial(("server", 80))
    network.partition("127.0.0.1", "server")
    with trio.move_on_after(1) as scope:
        await network.dial(("server", 80))
    assert scope.cancelled_caught


@pytest.mark.parametrize("bound_by", ["network", "view"])
@pytest.mark.parametrize("when", ["before the dial", "after it"])
@simulated
async def test_the_wildcard_that_a_listener_says_is_every_host(bound_by, when):
    network: Any = SimulatedNetwork(config=NetworkConfig(connect_timeout=1), **WHOLE)
    binder = network if bound_by == "network" else network.host("server")
    listener = await binder.bind(("0.0.0.0", 80))
    assert listener.local_address == ("0.0.0.0", 80)
    client, other = network.host("client"), network.host("other")
    if when == "before the dial":
        network.partition(listener.local_address[0], "client")
        with pytest.raises(trio.TooSlowError):
            await client.dial(("server", 80))
        network.heal("client", listener.local_address[0])
        await client.dial(("server", 80))
    else:
        dialled = await client.dial(("server", 80))
        accepted = await listener.accept()
        network.partition(listener.local_address[0], "client")
        await dialled.send_all(b"x")
        with pytest.raises(trio.TooSlowError):
            await accepted.receive_some(timeout=1)
        network.heal("::", "client")
        assert await accepted.receive_some() == b"x"
    network.partition("", "client")
    await other.dial(("server", 80))
    await client.bind(("client", 81))
    await client.dial(("localhost", 81))  # nobody is cut off from himself
    network.reset("0.0.0.0", "client")
    if when == "after it":
        with broken_by(errno.ECONNRESET):
            await accepted.receive_some()


@simulated
async def test_a_partition_in_one_direction():
    network = SimulatedNetwork(latency=1.0, **WHOLE)
    first, second = await pair_of(network)
    network.partition("a", "b", one_way=True)
    start = elapsed()
    await first.send_all(b"lost in the dark")
    await second.send_all(b"arrives")
    assert await first.receive_some() == b"arrives"
    assert elapsed() == start + 1
    with pytest.raises(trio.TooSlowError):
        await second.receive_some(timeout=9)
    network.heal("b", "a", one_way=True)  # the other direction: nothing is stopped there
    with pytest.raises(trio.TooSlowError):
        await second.receive_some(timeout=10)
    network.heal("a", "b", one_way=True)
    assert await second.receive_some() == b"lost in the dark"
    assert elapsed() == start + 21


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
@simulated
async def test_a_dial_has_to_get_there_and_back(direction):
    network = SimulatedNetwork(latency=1.0)
    await network.bind(("b", 80))
    network.host("a")
    network.partition(*direction, one_way=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after, 5, network.heal, "a", "b")
        await network.host("a").dial(("b", 80))
        assert elapsed() == 7


@simulated
async def test_ends_and_resets_are_stopped_in_their_own_direction():
    network = SimulatedNetwork(latency=1.0, config=NetworkConfig(so_linger=0))
    first, second = await pair_of(network)
    network.partition(["a"], {"b"}, one_way=True)
    await second.send_eof()
    assert await first.receive_some() == b""
    await first.aclose()
    with trio.move_on_after(10) as scope:
        await second.receive_some()
    assert scope.cancelled_caught
    start = elapsed()
    network.heal("a", "b")
    with broken_by(errno.ECONNRESET):
        await second.receive_some()
    assert elapsed() == start + 1


def test_a_partition_may_be_made_before_the_run():
    network = SimulatedNetwork()
    network.host("server")
    network.partition("127.0.0.1", "server", one_way=True)

    async def main() -> None:
        await network.bind(("server", 80))
        with trio.move_on_after(1) as scope:
            await network.dial(("server", 80))
        assert scope.cancelled_caught

    run_deterministically(main)
