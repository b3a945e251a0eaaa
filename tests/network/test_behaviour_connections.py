"""Behaviour of every network: bind, dial, accept, their errors, and closing."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from support.networks import ANY_PORT, SIMULATED, World, connect, connected, everywhere, expect, on
from support.streams import closing, receive_all

from trio_uring import IncompleteReadError, NetworkStream

if TYPE_CHECKING:
    from trio_uring import NetworkListener

MIB = 1 << 20
MANY = 64  # clients
NOT_ADDRESSES: dict[str, Any] = {
    "a string": "127.0.0.1",
    "one part": ("127.0.0.1",),
    "three parts": ("127.0.0.1", 80, 0),
    "a string for a port": ("127.0.0.1", "80"),
    "a number for a host": (127, 80),
    "bytes for a host": (b"127.0.0.1", 80),
    "nothing": None,
    "a number": 80,
}


# -- bind and dial


@everywhere
async def test_addresses_of_both_ends_agree(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    host, port = listener.local_address
    assert host == "127.0.0.1"
    assert 0 < port < 65536
    client, server = await connect(network, listener)
    async with closing(listener, client, server):
        assert client.remote_address == server.local_address == listener.local_address
        assert client.local_address == server.remote_address
        assert client.local_address[0] == "127.0.0.1"
        assert client.local_address[1] not in (0, port)
        assert isinstance(client, NetworkStream)
        assert isinstance(server, NetworkStream)


@everywhere
async def test_connections_have_addresses_of_their_own(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    pairs = [await connect(network, listener) for _ in range(5)]
    async with closing(listener, *(end for pair in pairs for end in pair)):
        assert len({client.local_address for client, _ in pairs}) == 5
        for client, server in pairs:
            await client.send_all(repr(client.local_address).encode())
            await client.send_eof()
            assert await receive_all(server) == repr(server.remote_address).encode()


@everywhere
async def test_two_listeners_have_two_ports(world: World) -> None:
    network = world.make()
    one, other = await network.bind(ANY_PORT), await network.bind(ANY_PORT)
    async with closing(one, other):
        assert one.local_address != other.local_address


@everywhere
async def test_an_address_can_be_bound_once(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        with pytest.raises(OSError, match=r"[Aa]ddress already in use") as caught:
            await network.bind(listener.local_address)
        assert caught.value.errno == errno.EADDRINUSE
        client, server = await connect(network, listener)  # the first one is as before
        async with closing(client, server):
            pass


@everywhere
async def test_a_closed_listener_frees_its_address(world: World) -> None:
    """Also while a connection that it accepted is open, and after one was closed."""
    network = world.make()
    listener = await network.bind(world.lone_address())
    pair = await connect(network, listener)
    address = listener.local_address
    await listener.aclose()
    async with closing(*pair):
        again = await network.bind(address)
        assert again.local_address == address
        other = await connect(network, again)
        await again.aclose()
        await other[1].aclose()
        await other[0].aclose()
    last = await network.bind(address)
    await last.aclose()


@everywhere
async def test_the_wildcard_listens_on_loopback(world: World) -> None:
    network = world.make()
    listener = await network.bind(("", 0))
    async with closing(listener):
        nothing: list[NetworkStream] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_many, listener, 1, nothing)
            client = await network.dial(("127.0.0.1", listener.local_address[1]))
        async with closing(client, *nothing):
            await client.send_all(b"here")
            assert await nothing[0].receive_exactly(4) == b"here"


@everywhere
@pytest.mark.parametrize("name", NOT_ADDRESSES)
async def test_what_is_no_address_is_a_type_error(world: World, name: str) -> None:
    network = world.make()
    for call in (network.bind, network.dial):
        with pytest.raises(TypeError, match="an address is a pair"):
            await call(NOT_ADDRESSES[name])


@everywhere
@pytest.mark.parametrize("port", [-1, 65536, 70000])
async def test_a_port_out_of_range_is_refused(world: World, port: int) -> None:
    """getaddrinfo would take it modulo 65536."""
    network = world.make()
    with pytest.raises(ValueError, match="port"):
        await (await network.bind(("127.0.0.1", port))).aclose()
    with pytest.raises(ValueError, match="port"):
        await network.dial(("127.0.0.1", port))


# -- dial that fails


@everywhere
async def test_nothing_listens(world: World) -> None:
    network = world.make()
    with pytest.raises(ConnectionRefusedError) as caught:
        await network.dial(world.silent_port())
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.strerror


@everywhere
async def test_dial_to_a_closed_listener(world: World) -> None:
    network = world.make()
    listener = await network.bind(world.lone_address())
    client, server = await connect(network, listener)
    await listener.aclose()
    async with closing(client, server):
        await expect(ConnectionRefusedError, network.dial, listener.local_address)
        await client.send_all(b"still here")  # what it had accepted goes on
        assert await server.receive_exactly(10) == b"still here"


@everywhere
async def test_connect_timeout(world: World) -> None:
    """Connections that nobody accepts fill the backlog; the next one has to wait, on every
    network."""
    network = world.make(connect_timeout=0.05, backlog=1)
    listener = await network.bind(ANY_PORT)
    waiting: list[NetworkStream] = []
    async with closing(listener):
        for _ in range(20):
            try:
                waiting.append(await network.dial(listener.local_address))
            except trio.TooSlowError:
                if waiting:  # or it was this process that was slow
                    break
        else:
            pytest.fail("20 connections in a backlog of 1")
        accepted: list[NetworkStream] = []
        await accept_many(listener, len(waiting), accepted)
        patient = network if world.is_simulated else world.make()
        accepted += await connect(patient, listener)  # there is room again
        async with closing(*accepted, *waiting):
            pass


@everywhere
async def test_a_connect_timeout_that_is_not_reached(world: World) -> None:
    for seconds in (30, float("inf")):
        async with connected(world.make(connect_timeout=seconds)) as (client, server):
            await client.send_all(b"x")
            assert await server.receive_some() == b"x"


@everywhere
async def test_a_connect_timeout_of_0(world: World) -> None:
    network = world.make(connect_timeout=0)
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        await expect(trio.TooSlowError, network.dial, listener.local_address)


@on(SIMULATED)
async def test_connect_timeout_of_a_host_that_is_cut_off(world: World) -> None:
    network: Any = world.make(connect_timeout=3)
    network.host("server")
    network.partition("127.0.0.1", "server")
    start = trio.current_time()
    await expect(trio.TooSlowError, network.dial, ("server", 80))
    assert trio.current_time() == start + 3
    network.heal("127.0.0.1", "server")
    await expect(ConnectionRefusedError, network.dial, ("server", 80))


@everywhere
async def test_a_cancelled_dial_leaves_nothing(world: World) -> None:
    """The descriptors and the counters of open connections are looked at after each test."""
    network = world.make(backlog=1)
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        opened: list[NetworkStream] = []
        for _ in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial_into, network, listener, opened)
                await world.pause(6)
                nursery.cancel_scope.cancel()
        async with closing(*opened):
            pass


async def dial_into(network: Any, listener: NetworkListener, opened: list[NetworkStream]) -> None:
    opened.append(await network.dial(listener.local_address))


@everywhere
async def test_a_reset_before_the_accept(world: World) -> None:
    """The connection may be accepted all the same, and then it is broken or ended; the listener
    goes on."""
    network = world.make(so_linger=0)
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        gone = await network.dial(listener.local_address)
        await gone.aclose()
        await world.quiet()
        accepted: list[NetworkStream] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_until_one_speaks, listener, accepted)
            client = await network.dial(listener.local_address)
            await client.send_all(b"me")
        async with closing(client, *accepted):
            assert accepted[-1].remote_address == client.local_address


async def accept_until_one_speaks(listener: NetworkListener, accepted: list[NetworkStream]) -> None:
    while True:
        accepted.append(await listener.accept())
        try:
            assert await accepted[-1].receive_exactly(2) == b"me"
            return
        except (trio.BrokenResourceError, IncompleteReadError):
            pass


# -- accept


async def accept_many(listener: NetworkListener, count: int, accepted: list[NetworkStream]) -> None:
    for _ in range(count):
        accepted.append(await listener.accept())


@everywhere
async def test_a_cancelled_accept_loses_no_connection(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    accepted: list[NetworkStream] = []
    clients: list[NetworkStream] = []

    async def accept_with_cancels() -> None:
        while len(accepted) < 30:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_later, world, nursery.cancel_scope)
                while len(accepted) < 30:
                    accepted.append(await listener.accept())
                nursery.cancel_scope.cancel()

    async with closing(listener):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_with_cancels)
            for _ in range(30):
                clients.append(await network.dial(listener.local_address))
        async with closing(*accepted, *clients):
            assert {end.remote_address for end in accepted} == {
                end.local_address for end in clients
            }


async def cancel_later(world: World, scope: trio.CancelScope) -> None:
    await world.pause()
    scope.cancel()


@everywhere
async def test_two_tasks_cannot_accept_at_once(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with closing(listener), trio.open_nursery() as nursery:
        accepted: list[NetworkStream] = []
        nursery.start_soon(accept_many, listener, 1, accepted)
        await world.quiet()
        await expect(trio.BusyResourceError, listener.accept)
        client = await network.dial(listener.local_address)  # the first one still waits
        while not accepted:
            await trio.lowlevel.checkpoint()
        async with closing(client, *accepted):
            pass


@everywhere
async def test_closing_wakes_who_accepts(world: World) -> None:
    listener = await world.make().bind(ANY_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, listener.accept)
        await world.quiet()
        await listener.aclose()
    await expect(trio.ClosedResourceError, listener.accept)
    await listener.aclose()


@everywhere
async def test_what_was_not_accepted_is_reset_or_ended_when_the_listener_closes(
    world: World,
) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    client = await network.dial(listener.local_address)
    await listener.aclose()
    async with closing(client):
        with contextlib.suppress(trio.BrokenResourceError):
            assert await client.receive_some() == b""


@everywhere
async def test_a_listener_closes_in_a_cancelled_scope(world: World) -> None:
    network = world.make()
    listener = await network.bind(world.lone_address())
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    assert scope.cancelled_caught
    await expect(trio.ClosedResourceError, listener.accept)
    again = await network.bind(listener.local_address)
    await again.aclose()


@everywhere
async def test_many_clients(world: World) -> None:
    """64 at once over one listener, each with its own data and its own pace."""
    network = world.make()
    listener = await network.bind(ANY_PORT)

    async def echo(stream: NetworkStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    async def client(number: int) -> None:
        message = bytes([number]) * (100 + 100 * number)
        stream = await network.dial(listener.local_address)
        async with closing(stream):
            for _ in range(4):
                # The message may be more than there is room for on the way.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, message)
                    assert await stream.receive_exactly(len(message)) == message
            await stream.send_eof()
            assert await stream.receive_some() == b""

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_listeners, echo, [listener])
        assert listeners == [listener]
        async with trio.open_nursery() as clients:
            for number in range(MANY):
                clients.start_soon(client, number)
        nursery.cancel_scope.cancel()
    await expect(trio.ClosedResourceError, listener.accept)  # serve_listeners closes it
