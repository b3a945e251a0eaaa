"""Addresses, listeners and dials of the simulated network.

Rules of this file: those of support/simulated.py.
"""

from __future__ import annotations

import errno
import math
import os

import pytest
import trio
import trio.testing
from support.simulated import (
    broken_by,
    fails,
    simulated,
)

from trio_uring._network.network import NetworkConfig
from trio_uring._network.simulated import SimulatedNetwork

pytestmark = pytest.mark.no_ring


# -- addresses


@simulated
async def test_ports_are_given_out_in_order_and_come_back():
    network = SimulatedNetwork()
    first, second = await network.bind(("127.0.0.1", 0)), await network.bind(("localhost", 0))
    assert (first.local_address, second.local_address) == (
        ("127.0.0.1", 49152),
        ("127.0.0.1", 49153),
    )
    other = await network.bind(("server", 0))
    assert other.local_address == ("server", 49152)
    with fails(errno.EADDRINUSE):
        await network.bind(first.local_address)
    await first.aclose()
    assert (await network.bind(("127.0.0.1", 0))).local_address[
        1
    ] == 49154  # not the one that was just let go
    again = await network.bind(first.local_address)
    assert (await network.bind(("", 0))).local_address == ("0.0.0.0", 49155)
    stream = await network.dial(again.local_address)
    assert stream.local_address == ("127.0.0.1", 49156)
    with fails(errno.EADDRINUSE):
        await network.bind(stream.local_address)
    await stream.aclose()
    await network.bind(stream.local_address)


@pytest.mark.parametrize("wildcard", ["", "0.0.0.0", "::"])
@simulated
async def test_a_wildcard_is_every_host(wildcard):
    network = SimulatedNetwork()
    async with await network.bind((wildcard, 80)) as listener:
        for host in ("server", "localhost", wildcard):
            stream = await network.dial((host, 80))
            assert (await listener.accept()).local_address == stream.remote_address
            assert stream.remote_address[0] == ("server" if host == "server" else "127.0.0.1")
        for host in ("server", wildcard):
            with fails(errno.EADDRINUSE):
                await network.bind((host, 80))
        with fails(errno.EADDRINUSE):
            await network.host("server").bind((wildcard, 80))
    await network.bind(("server", 80))
    with fails(errno.EADDRINUSE):
        await network.bind((wildcard, 80))


@simulated
async def test_a_host_speaks_for_itself():
    network = SimulatedNetwork()
    server, client = network.host("server"), network.host("client")
    with fails(errno.EADDRNOTAVAIL):
        await server.bind(("client", 80))
    async with await server.bind(("", 80)) as listener:
        stream = await client.dial(("server", 80))
        accepted = await listener.accept()
        assert stream.local_address == accepted.remote_address == ("client", 49152)
        assert stream.remote_address == accepted.local_address == ("server", 80)
        await server.dial(("localhost", 80))
        for other in (client, network):
            with pytest.raises(ConnectionRefusedError):
                await other.dial(("localhost", 80))
    with pytest.raises(ValueError, match="not the name of a host"):
        network.host("")


@simulated
async def test_all_ports_of_a_host_in_use():
    network = SimulatedNetwork()
    listener = await network.bind(("server", 80))
    network._hosts.used |= {("127.0.0.1", port) for port in range(49152, 65536) if port != 60000}
    assert (await network.bind(("127.0.0.1", 0))).local_address == ("127.0.0.1", 60000)
    with fails(errno.EADDRINUSE):
        await network.bind(("127.0.0.1", 0))
    with fails(errno.EADDRNOTAVAIL):
        await network.dial(listener.local_address)
    network._hosts.used.discard(("127.0.0.1", 50000))
    assert (await network.dial(listener.local_address)).local_address == ("127.0.0.1", 50000)


@pytest.mark.parametrize(
    "address", [("server", -1), ("server", 65536), (b"server", 1), ("server", "1")]
)
@simulated
async def test_what_is_no_address(address):
    network = SimulatedNetwork()
    for call in (network.bind, network.dial):
        with pytest.raises((ValueError, TypeError)):
            await call(address)


@pytest.mark.parametrize(
    "options",
    [
        {"latency": -1},
        {"latency": (2, 1)},
        {"latency": math.inf},
        {"bandwidth": 0},
        {"buffer_size": 0},
        {"short": 1.1},
        {"race": -0.1},
    ],
)
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=r"latency|bandwidth|buffer_size|short"):
        SimulatedNetwork(**options)


# -- dials and accepts


@pytest.mark.parametrize("latency", [0.0, 1.0])
@simulated
async def test_a_refused_dial(latency):
    network = SimulatedNetwork(latency=latency)
    with pytest.raises(ConnectionRefusedError, match=os.strerror(errno.ECONNREFUSED)):
        await network.dial(("server", 80))
    assert trio.current_time() == 2 * latency
    async with await network.bind(("server", 80)):
        for refused in (("server", 80), ("", 80)):
            network.refuse(refused)
            with pytest.raises(ConnectionRefusedError):
                await network.dial(("server", 80))
            network.accept_again(refused)
            await network.dial(("server", 80))


@pytest.mark.parametrize(("backlog", "taken"), [(None, 128), (0, 1), (1, 1), (3, 3)])
@simulated
async def test_a_full_backlog_makes_dials_wait(backlog, taken):
    network = SimulatedNetwork(config=NetworkConfig(backlog=backlog))
    hasty = network.host("127.0.0.1", config=NetworkConfig(connect_timeout=2))
    listener = await network.bind(("server", 80))
    streams = [await network.dial(("server", 80)) for _ in range(taken)]
    with pytest.raises(trio.TooSlowError):
        await hasty.dial(("server", 80))
    assert trio.current_time() == 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(network.dial, ("server", 80))
        await trio.testing.wait_all_tasks_blocked()
        for stream in streams:
            assert (await listener.accept()).remote_address == stream.local_address
    await listener.accept()  # and the one that gave up is not among them
    with trio.move_on_after(1) as scope:
        await listener.accept()
    assert scope.cancelled_caught


@pytest.mark.parametrize("how", ["close", "refuse"])
@simulated
async def test_dials_that_wait_for_room_can_be_refused(how):
    network = SimulatedNetwork(config=NetworkConfig(backlog=1))
    listener = await network.bind(("server", 80))
    stream = await network.dial(("server", 80))
    refused = []

    async def dial() -> None:
        with pytest.raises(ConnectionRefusedError):
            await network.dial(("server", 80))
        refused.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(dial)
        await trio.testing.wait_all_tasks_blocked()
        if how == "close":
            await listener.aclose()
            with broken_by(errno.ECONNRESET):
                await stream.receive_some()
        else:
            network.refuse(("server", 80))
    assert len(refused) == 3


@simulated
async def test_many_dials_wait_for_a_small_backlog():
    network = SimulatedNetwork(config=NetworkConfig(backlog=2), latency=(0.1, 0.9))
    listener = await network.bind(("server", 80))
    remotes = set()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(network.dial, ("server", 80))
        for _ in range(20):
            remotes.add((await listener.accept()).remote_address)
            assert len(listener._queue) <= 2
    assert len(remotes) == 20


@simulated
async def test_accept_by_trios_rules():
    network = SimulatedNetwork()
    listener = await network.bind(("server", 80))

    async def accept_is_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    stream = await network.dial(("server", 80))
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.accept()
    assert scope.cancelled_caught
    with trio.testing.assert_checkpoints():
        assert (await listener.accept()).remote_address == stream.local_address
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_is_closed)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.accept()
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.aclose()
    await accept_is_closed()
    await listener.aclose()


@simulated
async def test_a_cancelled_dial_leaves_nothing():
    network = SimulatedNetwork(latency=1.0)
    listener = await network.bind(("server", 80))
    for seconds in (0.0, 0.5, 1.5):
        with trio.move_on_after(seconds) as scope:
            await network.dial(("server", 80))
        assert scope.cancelled_caught
    for call in (network.dial, network.bind):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(("other", 80))
        assert scope.cancelled_caught
    assert network._hosts.used == {("server", 80)}
    assert not listener._queue
