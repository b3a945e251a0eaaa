"""What only networks on sockets have: options that the kernel confirms, host names, IPv6,
descriptors.

Rules: the kernel says what was set (getsockopt, TCP_INFO, a plain socket at the other end), not the
code. Both networks do the same; what every network does is in test_behaviour_*.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.networks import (
    ANY_PORT,
    REAL,
    CountingSocket,
    World,
    blocks,
    connect,
    connected,
    expect,
    on,
    reset_by_hand,
    socket_of,
)
from support.streams import checked_run, closing, open_descriptors, until

import trio_uring
from trio_uring import NetworkConfig, TrioNetwork, UringNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BOTH = [kind for kind in REAL if not kind.wrappers]
both = on(BOTH)


def linger_of(sock: Any) -> tuple[int, int]:
    return struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))  # type: ignore[return-value]


def listening_socket(stream: Any) -> socket.socket:
    return stream._listener.socket  # type: ignore[no-any-return]


def backlog_of(sock: Any) -> tuple[int, int]:
    """Of a listening socket: connections that wait, and how many may."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    unacked, sacked = struct.unpack_from("=II", info, 24)
    return unacked, sacked


def system_backlog() -> int:
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


# -- options


@both
@pytest.mark.parametrize("nodelay", [True, False])
async def test_tcp_nodelay(world: World, nodelay: bool) -> None:
    async with connected(world.make(tcp_nodelay=nodelay)) as pair:
        for end in pair:
            assert (
                bool(socket_of(end).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
            )


@both
async def test_nodelay_is_the_default(world: World) -> None:
    async with connected(world.make()) as pair:
        for end in pair:
            assert socket_of(end).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert linger_of(socket_of(end)) == (0, 0)


@both
async def test_so_linger_of_0_is_set_on_both_ends(world: World) -> None:
    async with connected(world.make(so_linger=0)) as pair:
        for end in pair:
            assert linger_of(socket_of(end)) == (1, 0)


@both
@pytest.mark.parametrize("side", ["client", "server"])
async def test_so_linger_of_0_resets(world: World, side: str) -> None:
    """A plain socket at the other end sees ECONNRESET, and not the end."""
    network = world.make(so_linger=0)
    if side == "client":
        with socket.create_server(ANY_PORT) as server:
            stream = await network.dial(server.getsockname())
            peer = server.accept()[0]
    else:
        listener = await network.bind(ANY_PORT)
        async with closing(listener):
            peer = socket.create_connection(listener.local_address)
            stream = await listener.accept()
    with peer:
        await stream.aclose()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


@both
@pytest.mark.parametrize("so_linger", [None, 5])
async def test_a_lingering_close_delivers(world: World, so_linger: int | None) -> None:
    """Everything that was sent, to a peer that reads only after the close."""
    data = b"".join(blocks(50_000))
    network = world.make(so_linger=so_linger)
    with socket.create_server(ANY_PORT) as server:
        stream = await network.dial(server.getsockname())
        peer = server.accept()[0]
    with peer:
        got = bytearray()

        def read() -> None:
            while chunk := peer.recv(65536):
                got.extend(chunk)

        await stream.send_all(data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            await trio.to_thread.run_sync(read)
        assert got == data


@contextlib.asynccontextmanager
async def lingering_and_full(
    world: World,
) -> AsyncIterator[tuple[trio_uring.NetworkStream, socket.socket]]:
    """A stream whose aclose would wait for a minute, full, and its peer, which does not read."""
    with socket.create_server(ANY_PORT) as server:
        stream = await world.make(so_linger=60).dial(server.getsockname())
        peer = server.accept()[0]
    with peer:
        with trio.move_on_after(0.02):
            await stream.send_all(blocks(32 << 20))
        yield stream, peer


@both
async def test_a_lingering_close_does_not_stop_the_other_tasks(world: World) -> None:
    """The peer does not read: aclose waits, the scheduler goes on, and a cancel ends the
    waiting."""
    before = open_descriptors()
    async with lingering_and_full(world) as (stream, _):
        closed = trio.Event()

        async def close() -> None:
            await stream.aclose()
            closed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.sleep(0.05)
            was_closed = closed.is_set()
            nursery.cancel_scope.cancel()
        await expect(trio.ClosedResourceError, stream.send_all, b"x")
        assert not was_closed
    await until(lambda: not left_since(before), "the descriptor is given back")


@both
async def test_a_lingering_close_ends_when_the_peer_resets(world: World) -> None:
    """What such a connection had not sent stays in TIOCOUTQ for ever."""
    async with lingering_and_full(world) as (stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.aclose)
            await world.quiet()
            reset_by_hand(peer)
            nursery.cancel_scope.deadline = trio.current_time() + 30  # not a minute
    assert not nursery.cancel_scope.cancelled_caught


@both
async def test_lingering_closes_leave_threads_for_others(world: World) -> None:
    """More of them than trio has threads, to peers that do not read, which would stop every
    getaddrinfo of the process."""
    network = world.make(so_linger=60)
    with contextlib.ExitStack() as peers, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(ANY_PORT)
        server.listen(50)
        async with trio.open_nursery() as nursery:
            for _ in range(41):
                stream = await network.dial(server.getsockname())
                peers.callback(reset_by_hand, server.accept()[0])
                async with trio.open_nursery() as sending:
                    sending.start_soon(stream.send_all, blocks(8 << 20))
                    await trio.testing.wait_all_tasks_blocked()
                    sending.cancel_scope.cancel()
                nursery.start_soon(stream.aclose)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.move_on_after(30) as others:
                await trio.to_thread.run_sync(int)
            nursery.cancel_scope.cancel()
    assert not others.cancelled_caught


@pytest.mark.cpython_only("PyPy's listen(0) takes one connection more")
@both
async def test_the_backlog_is_the_configs(world: World) -> None:
    for backlog, expected in ((0, 0), (1, 1), (7, 7)):
        listener = await world.make(backlog=backlog).bind(ANY_PORT)
        async with closing(listener):
            assert backlog_of(listening_socket(listener))[1] == expected
    listener = await world.make().bind(ANY_PORT)
    async with closing(listener):
        assert backlog_of(listening_socket(listener))[1] == min(65535, system_backlog())


# -- addresses


@both
async def test_ipv6(world: World) -> None:
    network = world.make()
    listener = await network.bind(("::1", 0))
    client, server = await connect(network, listener)
    async with closing(listener, client, server):
        for address in (
            listener.local_address,
            client.local_address,
            client.remote_address,
            server.remote_address,
        ):
            assert address[0] == "::1"
            assert len(address) == 2
        await client.send_all([b"over ", b"IPv6"])
        assert await server.receive_exactly(9) == b"over IPv6"


@both
async def test_wildcards(world: World) -> None:
    """ "" is IPv4, "::" is IPv6 alone: both can have the same port."""
    network = world.make()
    while True:
        four = await network.bind(("", 0))
        port = four.local_address[1]
        try:
            six = await network.bind(("::", port))
            break
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            await four.aclose()  # another process has that port of IPv6
    async with closing(four, six):
        assert four.local_address == ("0.0.0.0", port)
        assert six.local_address == ("::", port)
        for listener, host in ((four, "127.0.0.1"), (six, "::1")):
            accepted: list[Any] = []

            async def accept(listener: Any = listener, accepted: list[Any] = accepted) -> None:
                accepted.append(await listener.accept())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                client = await network.dial((host, port))
            async with closing(client, *accepted):
                assert client.remote_address == (host, port) == accepted[0].local_address


@both
async def test_host_names(world: World) -> None:
    network = world.make()
    listener = await network.bind(("localhost", 0))
    assert listener.local_address[0] in ("127.0.0.1", "::1")
    async with closing(listener):
        accepted: list[Any] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            client = await network.dial(("localhost", listener.local_address[1]))
        async with closing(client, *accepted):
            assert client.remote_address == listener.local_address


@both
async def test_unknown_names(world: World) -> None:
    network = world.make()
    with pytest.raises(socket.gaierror):
        await network.dial(("no-such-host.invalid", 80))
    with pytest.raises(socket.gaierror):
        await network.bind(("no-such-host.invalid", 0))


@both
@pytest.mark.parametrize("name", ["a..b", "x" * 300])
async def test_names_that_no_host_can_have(world: World, name: str) -> None:
    network = world.make()
    await expect(OSError, network.dial, (name, 80))
    await expect(OSError, network.bind, (name, 0))


@both
async def test_an_address_that_is_not_of_this_machine(world: World) -> None:
    """192.0.2.0/24 is for documentation (RFC 5737)."""
    with pytest.raises(OSError, match=r"192\.0\.2\.1:0") as caught:
        await world.make().bind(("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@both
async def test_an_error_of_bind_names_the_address(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        host, port = listener.local_address
        with pytest.raises(OSError, match=f"{host}:{port}") as caught:
            await network.bind((host, port))
        assert caught.value.errno == errno.EADDRINUSE


@both
async def test_an_error_of_dial_names_the_address_and_has_every_attempt(world: World) -> None:
    host, port = world.silent_port()
    with pytest.raises(ConnectionRefusedError, match=f"{host}:{port}") as caught:
        await world.make().dial((host, port))
    assert [exc.errno for exc in caught.value.__cause__.exceptions] == [errno.ECONNREFUSED]  # type: ignore[union-attr]


@both
async def test_a_name_with_several_addresses_is_refused_as_one(world: World) -> None:
    _, port = world.silent_port()
    trio.socket.set_custom_hostname_resolver(
        Resolver((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    )
    with pytest.raises(ConnectionRefusedError, match=f"two.example:{port}") as caught:
        await world.make().dial(("two.example", port))
    assert len(caught.value.__cause__.exceptions) == 2  # type: ignore[union-attr]


@both
async def test_attempts_that_fail_differently_are_a_plain_oserror(world: World) -> None:
    _, port = world.silent_port()
    trio.socket.set_custom_hostname_resolver(
        Resolver((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "255.255.255.255"))
    )
    with pytest.raises(OSError, match=r"two\.example") as caught:
        await world.make().dial(("two.example", port))
    assert len({exc.errno for exc in caught.value.__cause__.exceptions}) == 2  # type: ignore[union-attr]
    assert type(caught.value) is OSError
    assert caught.value.errno is None


@both
async def test_the_next_address_of_a_name_is_tried(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    trio.socket.set_custom_hostname_resolver(
        Resolver((socket.AF_INET, "255.255.255.255"), (socket.AF_INET, "127.0.0.1"))
    )
    async with closing(listener):
        client = await network.dial(("two.example", listener.local_address[1]))
        server = await listener.accept()
        async with closing(client, server):
            assert client.remote_address == listener.local_address


class Resolver(trio.abc.HostnameResolver):
    """Says the same of every name."""

    def __init__(self, *answers: tuple[Any, str]) -> None:
        self._answers = answers

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, port))
            for family, name in self._answers
        ]

    async def getnameinfo(self, *args: Any) -> Any:
        raise NotImplementedError


# -- the config


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout", "write_timeout"])
@pytest.mark.no_ring
def test_bad_timeouts(name: str) -> None:
    for bad in (-1, -0.001, float("nan"), -float("inf")):
        with pytest.raises(ValueError, match=name):
            NetworkConfig(**{name: bad})
    with pytest.raises(TypeError):
        NetworkConfig(**{name: "1"})
    for good in (None, 0, 0.5, 10, float("inf")):
        assert getattr(NetworkConfig(**{name: good}), name) == good


@pytest.mark.parametrize("name", ["so_linger", "backlog", "read_buffer_size"])
@pytest.mark.no_ring
def test_bad_numbers(name: str) -> None:
    for bad in (-1, -65536):
        with pytest.raises(ValueError, match=name):
            NetworkConfig(**{name: bad})  # type: ignore[arg-type]
    for other in (1.5, "1", b"1"):
        with pytest.raises(TypeError):
            NetworkConfig(**{name: other})  # type: ignore[arg-type]
    for good in (0, 1, 4096):
        assert getattr(NetworkConfig(**{name: good}), name) == good  # type: ignore[arg-type]


@pytest.mark.no_ring
def test_the_config_is_a_value() -> None:
    assert NetworkConfig() == NetworkConfig(tcp_nodelay=True)
    assert hash(NetworkConfig(backlog=5)) == hash(NetworkConfig(backlog=5))
    with pytest.raises(AttributeError):
        NetworkConfig().backlog = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        NetworkConfig(False)  # type: ignore[misc]
    for network in (UringNetwork, TrioNetwork):
        assert network().config == NetworkConfig()
        assert network(NetworkConfig(backlog=5)).config.backlog == 5


@pytest.mark.no_ring
def test_a_read_buffer_of_none() -> None:
    with pytest.raises(TypeError):
        NetworkConfig(read_buffer_size=None)  # type: ignore[arg-type]


# -- nothing is left open


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A listener that accepts nothing, with its backlog full: the kernel says so, and a further
    connect gets no answer."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(ANY_PORT)
        server.listen(0)
        for _ in range(100):
            waiting, most = backlog_of(server)
            if waiting > most:
                break
            client = stack.enter_context(socket.socket())
            client.settimeout(1)
            client.connect(server.getsockname())
        else:
            pytest.fail("the backlog does not fill")
        yield server


@both
async def test_a_dial_that_times_out_closes_its_socket(world: World, full: socket.socket) -> None:
    network = world.make(connect_timeout=0.03)
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(trio.TooSlowError):
            await network.dial(full.getsockname())
    assert_as_before(before)


@both
async def test_a_dial_that_is_cancelled_closes_its_socket(
    world: World, full: socket.socket
) -> None:
    network = world.make()
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(network.dial, full.getsockname())
        await trio.testing.wait_all_tasks_blocked()
        assert len(open_descriptors()) >= len(before) + 5
        nursery.cancel_scope.cancel()
    await until(lambda: not left_since(before), "every socket is closed")


@both
async def test_a_dial_in_a_cancelled_scope_opens_nothing(world: World, full: socket.socket) -> None:
    before = open_descriptors()
    for call, address in ((world.make().dial, full.getsockname()), (world.make().bind, ANY_PORT)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(address)  # type: ignore[operator]
        assert scope.cancelled_caught
    assert_as_before(before)


@both
async def test_a_refused_dial_and_a_failed_bind_close_their_sockets(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    address = world.silent_port()
    await expect(ConnectionRefusedError, network.dial, address)  # the ring is open from now on
    before = open_descriptors()
    async with closing(listener):
        for _ in range(3):
            await expect(ConnectionRefusedError, network.dial, address)
            await expect(OSError, network.bind, listener.local_address)
            await expect(OSError, network.bind, ("192.0.2.1", 0))
        assert_as_before(before)


def left_since(before: dict[int, str]) -> set[str]:
    """Sockets alone: a ring opens descriptors of its own when it is used first."""
    return {
        name
        for name in set(open_descriptors().values()) - set(before.values())
        if name.startswith("socket:")
    }


def assert_as_before(before: dict[int, str]) -> None:
    assert not left_since(before)


# -- peers that are gone before they are accepted


@both
async def test_a_peer_that_reset_before_the_accept(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        gone = socket.create_connection(listener.local_address)
        gone_from = gone.getsockname()
        reset_by_hand(gone)
        stream = await listener.accept()
        async with closing(stream):
            assert stream.local_address == listener.local_address
            # The kernel knows no peer any more.
            assert stream.remote_address in (("", 0), gone_from)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
        with socket.create_connection(listener.local_address) as peer:
            peer.send(b"next")
            stream = await listener.accept()
            async with closing(stream):
                assert await stream.receive_exactly(4) == b"next"


@both
async def test_a_peer_that_sent_and_left_before_the_accept(world: World) -> None:
    network = world.make()
    listener = await network.bind(ANY_PORT)
    async with closing(listener):
        with socket.create_connection(listener.local_address) as peer:
            peer.send(b"all that I say")
            name = peer.getsockname()
        stream = await listener.accept()
        async with closing(stream):
            assert stream.remote_address == name
            assert await stream.receive_exactly(14) == b"all that I say"
            assert await stream.receive_some() == b""


# -- one with the other


@pytest.mark.parametrize("dials", [UringNetwork, TrioNetwork])
async def test_the_networks_talk_to_each_other(dials: Any) -> None:
    network, other = dials(), (TrioNetwork if dials is UringNetwork else UringNetwork)()
    listener = await other.bind(ANY_PORT)
    client = await network.dial(listener.local_address)
    server = await listener.accept()
    async with closing(listener, client, server):
        assert (client.local_address, client.remote_address) == (
            server.remote_address,
            server.local_address,
        )
        for sender, receiver in ((client, server), (server, client)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send_all, blocks(1 << 20))
                assert await receiver.receive_exactly(1 << 20) == b"".join(blocks(1 << 20))
            await sender.send_eof()
            assert await receiver.receive_some() == b""


# -- which operations


async def test_the_ring_network_uses_the_ring() -> None:
    """One operation for a list, on the ring; nothing of it goes through trio's sockets."""
    async with connected(UringNetwork()) as (client, server):
        await client.send_all([b"prefix", b"payload"])
        assert await server.receive_exactly(13) == b"prefixpayload"
        into = bytearray(100_000)
        await client.send_all(b"one buffer")
        assert await server.receive_into(into) == 10
        counts = trio_uring.current_statistics().operations
        assert [counts[name].submitted for name in ("SENDMSG", "SEND")] == [1, 1]
        assert counts["RECV"].submitted >= 2


@on([kind for kind in REAL if kind.needs_ring])
async def test_a_list_is_one_operation_of_the_ring(world: World) -> None:
    """Through every wrapper."""
    async with connected(world.make()) as (client, server):
        for number, send in enumerate(list_senders(client)):
            await send([b"prefix", b"", bytearray(b"payload")])
            counts = trio_uring.current_statistics().operations
            assert counts["SENDMSG"].submitted == number + 1
            assert "SEND" not in counts or not counts["SEND"].submitted
            assert await server.receive_exactly(13) == b"prefixpayload"


@on([kind for kind in REAL if not kind.needs_ring])
async def test_a_list_is_one_sendmsg_of_trio(world: World) -> None:
    async with connected(world.make()) as (client, server):
        counting = CountingSocket(socket_of(client))
        for number, send in enumerate(list_senders(client)):
            await send([b"prefix", b"", bytearray(b"payload")])
            assert counting.calls == [("sendmsg", 2)] * (number + 1)
            assert await server.receive_exactly(13) == b"prefixpayload"


def list_senders(stream: Any) -> list[Any]:
    async def by_generator(buffers: Any) -> None:
        await stream.send_all_vectored(item for item in buffers)

    async def stapled(buffers: Any) -> None:
        await trio_uring.send_all_vectored(trio.StapledStream(stream, stream), buffers)

    return [
        stream.send_all,
        stream.send_all_vectored,
        by_generator,
        partial(trio_uring.send_all_vectored, stream),
        stapled,
    ]


@pytest.mark.parametrize("streams", [True, False])
def test_trios_network_in_an_enabled_run(streams):
    """With `streams=False` the streams are trio's, over sockets of the ring."""

    async def main() -> None:
        network = TrioNetwork(NetworkConfig(so_linger=2, write_timeout=5))
        async with await network.bind(("127.0.0.1", 0)) as listener:
            client: Any = await network.dial(listener.local_address)
            server = await listener.accept()
        async with client, server:
            assert isinstance(socket_of(client), trio_uring.UringSocket)
            assert isinstance(client.transport, trio_uring.SocketStream) == streams
            await client.send_all([b"a ", b"list"])
            await client.send_all(b" and one")
            assert client.bytes_sent == 8
            assert await server.receive_exactly(14) == b"a list and one"
            await client.send_eof()
            await server.wait_send_all_might_not_block()
            assert await server.receive_some() == b""
            with pytest.raises(trio.TooSlowError):
                await client.receive_some(timeout=0)

    checked_run(main, instruments=[trio_uring.Enable(streams=streams)])
