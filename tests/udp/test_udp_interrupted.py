"""UDP sockets that are cancelled, timed out, closed, refused, or used by two tasks at once.

Rules of this file: a socket still works after all of this, and what was counted as sent arrives.
"""

from __future__ import annotations

import os
import random
import socket

import outcome
import pytest
import trio
import trio.testing
from support.streams import passes, until_blocked
from support.udp import opened, plain_sender, receive_payloads, udp_pair
from trio._core._traps import WaitTaskRescheduled

import trio_uring

SEED = int(os.environ.get("TRIO_URING_SEED", "20261126"))
RECEIVES = pytest.mark.parametrize("receive", ["receive_from", "receive_many"])


@RECEIVES
async def test_two_receivers_are_one_too_many(receive):
    async with udp_pair() as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(server, receive))
            await until_blocked(server.socket.fileno())
            for other in (server.receive_from, server.receive_many):
                with pytest.raises(trio.BusyResourceError):
                    await other()
            await server.send_to(b"other way", client.getsockname())
            await client.send_to(b"x")
        assert (await client.receive_from())[0] == b"other way"


@RECEIVES
async def test_closing_wakes_and_is_final(receive):
    sock = await opened()
    async with trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await getattr(sock, receive)()

        nursery.start_soon(wait)
        await until_blocked(sock.socket.fileno())
        await sock.aclose()
    for call in (
        sock.receive_from,
        sock.receive_many,
        lambda: sock.send_to(b"x"),
        lambda: sock.send_many([b"x"]),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    await sock.aclose()


@RECEIVES
async def test_timeouts(receive, autojump_clock):
    async with udp_pair() as (client, server):
        with pytest.raises(trio.TooSlowError):
            await getattr(server, receive)(timeout=5)
        server.receive_timeout = 3
        before = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await getattr(server, receive)()
        assert trio.current_time() - before == 3
        await client.send_to(b"in time", timeout=5)
        await client.send_many([b"in time"], timeout=5)
        assert await receive_payloads(server, 2) == [b"in time"] * 2


@pytest.mark.parametrize("make", [trio.socket.socket, trio_uring.socket.socket])
@RECEIVES
async def test_closing_the_socket_within_wakes(make, receive):
    async with trio_uring.UDPSocket(make(type=socket.SOCK_DGRAM)) as sock:
        await sock.socket.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:

            async def wait():
                with pytest.raises(trio.ClosedResourceError):
                    await getattr(sock, receive)()

            nursery.start_soon(wait)
            await until_blocked(sock.socket.fileno())
            sock.socket.close()
        for call in (sock.receive_from, sock.receive_many, lambda: sock.send_to(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await call()


@RECEIVES
async def test_the_socket_within_is_no_second_receiver(receive):
    async with udp_pair() as (client, server):
        for first, second in (
            (getattr(server, receive), lambda: server.socket.recvfrom(10)),
            (lambda: server.socket.recvfrom(10), getattr(server, receive)),
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await second()
                await client.send_to(b"x")


@RECEIVES
async def test_a_refused_datagram_is_told(receive):
    closed = socket.socket(type=socket.SOCK_DGRAM)
    closed.bind(("127.0.0.1", 0))
    address = closed.getsockname()
    closed.close()
    async with await trio_uring.open_udp_socket(remote_address=address) as client:
        await client.send_to(b"x")
        with pytest.raises(ConnectionRefusedError):
            await getattr(client, receive)()
        await client.send_to(b"x")
        with pytest.raises(ConnectionRefusedError):
            await client.send_to(b"x")
        await client.send_to(b"x")
        with pytest.raises(ConnectionRefusedError):
            await client.send_many([b"x", b"yy", b"zzz"])
        assert client.datagrams_sent == 0


async def test_what_came_before_an_error_is_returned_first():
    """A connected socket has a datagram and an error: the error is told once, and not in place of
    the datagram."""
    async with await opened() as peer, await opened() as client:
        await peer.send_to(b"first", client.getsockname())
        await client.socket.connect(peer.getsockname())
        await peer.aclose()
        outcomes = []
        await client.send_to(b"into the void")
        for _ in range(2):
            try:
                outcomes += [payload for payload, _ in await client.receive_many()]
            except ConnectionRefusedError:
                outcomes.append("refused")
        assert sorted(outcomes, key=str) == [b"first", "refused"]


@RECEIVES
async def test_cancelled_before_it_begins(receive):
    async with udp_pair() as (client, server):
        await client.send_many([b"a", b"b"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(server, receive)()
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_many([b"c", b"dd"])
        assert scope.cancelled_caught
        assert client.datagrams_sent == 0
        assert await receive_payloads(server, 2) == [b"a", b"b"]


class Receiver:
    """Receives in all ways, and is cancelled again and again."""

    def __init__(self, sock: trio_uring.UDPSocket) -> None:
        self.sock = sock
        self.random = random.Random(SEED)
        self.got: list[bytes] = []
        self.cancels = self.wins = 0

    async def receive(self, scope: trio.CancelScope) -> None:
        with scope:
            if self.random.random() < 0.5:
                got = [await self.sock.receive_from()]
            else:
                got = await self.sock.receive_many(self.random.choice((1, 3, 100)))
            self.got += [payload for payload, _ in got]
            self.wins += scope.cancel_called
        self.cancels += scope.cancelled_caught


async def test_cancelled_receives_lose_nothing():
    """Cancelled just as datagrams come from outside of the ring: all of them are received, in
    order, once."""
    sent = 0
    async with await opened() as server:
        receiver = Receiver(server)
        with plain_sender(server) as sender:
            while receiver.cancels < 400 or receiver.wins < 10:
                scope = trio.CancelScope()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receiver.receive, scope)
                    await passes(receiver.random.randrange(5))
                    count = receiver.random.randrange(3)
                    for _ in range(count):
                        sender.send(b"%d" % sent)
                        sent += 1
                    await passes(receiver.random.randrange(2))
                    scope.cancel()
        receiver.got += await receive_payloads(server, sent - len(receiver.got))
    assert receiver.got == [b"%d" % number for number in range(sent)]


async def test_full_sockets_are_read_in_one_pass():
    async with await opened() as first, await opened() as second, await opened() as third:
        servers = [first, second, third]
        got = {server: [] for server in servers}
        async with await opened() as client:
            for server in servers:
                await client.send_many(
                    [(bytes(number % 3 + 1) * 50, server.getsockname()) for number in range(60)]
                )

            async def receive(server):
                got[server] += await receive_payloads(server, 60)

            async with trio.open_nursery() as nursery:
                for server in servers:
                    nursery.start_soon(receive, server)
        for server in servers:
            assert [len(payload) for payload in got[server]] == [
                (number % 3 + 1) * 50 for number in range(60)
            ]


async def park(coro):
    """Runs a call by hand until it waits for the kernel, and its operation has been submitted."""
    message = coro.send(None)
    while not isinstance(message, WaitTaskRescheduled):
        await trio.lowlevel.checkpoint()
        message = coro.send(outcome.Value(None))
    while trio_uring.current_statistics().queued:
        await trio.lowlevel.checkpoint()


@pytest.mark.uring_only("a coroutine that is destroyed in a wait of trio's own leaves it behind")
@RECEIVES
async def test_a_destroyed_receive_keeps_what_it_had(receive):
    """The coroutine of a blocked call is closed (coro.close()) as a datagram comes, before the
    kernel has cancelled it."""
    async with await opened() as server:
        with plain_sender(server) as sender:
            for _ in range(3):
                coro = getattr(server, receive)()
                await park(coro)
                sender.send(b"first")
                coro.close()
                sender.send(b"second")
                assert await receive_payloads(server, 2) == [b"first", b"second"]
            assert not any(op.in_use for op in server._lease.operations())


@RECEIVES
async def test_destroyed_after_it_took(receive):
    """The coroutine is closed at the checkpoint that follows: what it took is kept, errors too."""
    async with await opened() as server, await opened() as void:
        with plain_sender(server) as sender:
            for number in range(3):
                sender.send(b"%d" % number)
            coro = getattr(server, receive)()
            coro.send(None)
            coro.close()
            sender.send(b"3")
            assert await receive_payloads(server, 4) == [b"0", b"1", b"2", b"3"]
        client = await trio_uring.open_udp_socket(remote_address=void.getsockname())
        await void.aclose()
        async with client:
            await client.send_to(b"into the void")
            coro = getattr(client, receive)()
            coro.send(None)
            coro.close()
            with pytest.raises(ConnectionRefusedError):
                await client.receive_from()


async def test_who_waits_takes_nothing():
    """Of a socket that several processes have, a reader that is busy leaves it to the others."""
    async with await opened() as server, await opened() as client:
        got = []

        async def wait():
            got.append((await server.receive_from())[0])

        with server.socket._sock.dup() as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until_blocked(server.socket.fileno())
                with plain_sender(server) as sender:
                    sender.send(b"for the other")
                    assert other.recv(100) == b"for the other"
                await passes(5)
                assert not got
                await client.send_to(b"for us", server.getsockname())
        assert got == [b"for us"]


@pytest.mark.uring_only("a coroutine that is destroyed in a wait of trio's own leaves it behind")
async def test_a_destroyed_receive_and_nothing_came():
    async with await opened() as server:
        with plain_sender(server) as sender:
            coro = server.receive_from()
            await park(coro)
            coro.close()
            await passes(5)
            sender.send(b"later")
            assert (await server.receive_from())[0] == b"later"


@RECEIVES
async def test_an_empty_datagram_wakes(receive):
    async with await opened() as server:
        with plain_sender(server) as sender:
            got = []

            async def wait():
                got.append(await getattr(server, receive)())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until_blocked(server.socket.fileno())
                sender.send(b"")
            expected = (b"", sender.getsockname())
            assert got == [expected if receive == "receive_from" else [expected]]


@RECEIVES
async def test_a_run_wakes_and_is_split(receive):
    async with udp_pair() as (client, server):
        got = []

        async def wait():
            one = await getattr(server, receive)()
            got.extend(one if isinstance(one, list) else [one])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until_blocked(server.socket.fileno())
            await client.send_many([b"a" * 9] * 5)
        assert [payload for payload, _ in got] + await receive_payloads(server, 5 - len(got)) == [
            b"a" * 9
        ] * 5


@RECEIVES
async def test_closed_as_it_becomes_readable(receive):
    """What then has the same number is somebody else's."""
    server = await opened()
    stranger = socket.socket(type=socket.SOCK_DGRAM)
    outcomes = []

    async def wait():
        try:
            outcomes.append(await getattr(server, receive)())
        except trio.ClosedResourceError:
            outcomes.append("closed")

    with stranger, plain_sender(server) as sender:
        stranger.bind(("127.0.0.1", 0))
        stranger.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until_blocked(server.socket.fileno())
            sender.sendto(b"a stranger's", stranger.getsockname())
            sender.send(b"ours")
            number = server.socket.fileno()
            server._close()
            os.dup2(stranger.fileno(), number)
        os.close(number)
        assert outcomes != ["a stranger's"]
        assert stranger.recv(100) == b"a stranger's"
