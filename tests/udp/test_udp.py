"""UDP sockets: what is sent arrives, whole and once.

Rules of this file: everything is on loopback, and no more at a time than the receiver's buffer
holds.
"""

from __future__ import annotations

import errno
import math
import socket

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import checked_run, until_blocked
from support.udp import HOSTS, Spy, opened, plain_sender, receive_payloads, udp_pair

import trio_uring

FAMILIES = pytest.mark.parametrize(
    "family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"]
)


@FAMILIES
async def test_there_and_back(family):
    async with udp_pair(family) as (client, server):
        await client.send_to(b"question")
        payload, address = await server.receive_from()
        assert (payload, address) == (b"question", client.getsockname())
        await server.send_to(b"answer", address)
        assert await client.receive_from() == (b"answer", server.getsockname())
        assert client.getpeername() == server.getsockname()


@FAMILIES
async def test_many_there_and_back(family):
    async with udp_pair(family) as (client, server):
        assert await client.send_many([b"%d" % number for number in range(100)]) == 100
        got = []
        while len(got) < 100:
            got += await server.receive_many()
        assert got == [(b"%d" % number, client.getsockname()) for number in range(100)]
        assert await server.send_many((payload, address) for payload, address in got) == 100
        assert await receive_payloads(client, 100) == [payload for payload, _ in got]


@pytest.mark.parametrize("receive", ["receive_from", "receive_many"])
async def test_an_empty_datagram_is_one(receive):
    async with udp_pair() as (client, server):
        await client.send_to(b"")
        await client.send_to([])
        await client.send_many([b"", bytearray(), b"x", b""])
        got = []
        while len(got) < 6:
            one = await getattr(server, receive)()
            got += one if isinstance(one, list) else [one]
        assert [payload for payload, _ in got] == [b"", b"", b"", b"", b"x", b""]


@pytest.mark.parametrize("receive", ["receive_from", "receive_many"])
@FAMILIES
async def test_the_largest(family, receive):
    size = 65507 if family == socket.AF_INET else 65527
    async with udp_pair(family) as (client, server):
        largest = bytes(range(256)) * 256
        await client.send_to(largest[:size])
        got = await getattr(server, receive)()
        payload, _ = got if isinstance(got, tuple) else got[0]
        assert payload == largest[:size]
        for send in (
            client.send_to(largest[: size + 1]),
            client.send_many([b"a", largest[: size + 1], b"b"]),
        ):
            with pytest.raises(
                OSError, match=f"a datagram of {size + 1} bytes is too long"
            ) as caught:
                await send
            assert caught.value.errno == errno.EMSGSIZE
        assert client.datagrams_sent == 1
        assert await receive_payloads(server, 1) == [b"a"]


async def test_buffers_of_all_kinds():
    async with udp_pair() as (client, server):
        array = bytearray(b"-array-")
        await client.send_to([b"one", array, memoryview(b"two")[::1], b""])
        await client.send_to([b"%d," % number for number in range(3000)])
        await client.send_many([array, memoryview(b"abc").cast("B"), (memoryview(b"xyz"), None)])
        array.clear()  # nothing holds it
        got = await receive_payloads(server, 5)
        assert got[0] == b"one-array-two"
        assert got[1] == b"".join(b"%d," % number for number in range(3000))
        assert got[2:] == [b"-array-", b"abc", b"xyz"]


SIZES = st.one_of(st.sampled_from([0, 1, 2, 1400, 1472, 1473, 9000]), st.integers(0, 3000))


@st.composite
def datagrams(draw):
    runs = draw(
        st.lists(st.tuples(SIZES, st.integers(1, 70), st.sampled_from([0, 0, 1])), max_size=12)
    )
    return [(size, to) for size, count, to in runs for _ in range(count)]


def portions(payloads):
    """No more at a time than the buffers hold, where the system gives no larger ones than the
    default: of 9,000 bytes 25."""
    part, size = [], 0
    for payload, to in payloads:
        if len(part) == 60 or size + len(payload) > 150_000:
            yield part
            part, size = [], 0
        part.append((payload, to))
        size += len(payload)
    yield part


@settings(max_examples=25)
@given(given_datagrams=datagrams(), gro=st.booleans(), limit=st.sampled_from([1, 5, 1024]))
def test_what_is_sent_is_received_in_order(given_datagrams, gro, limit):
    async def main():
        async with (
            await opened(gro=gro) as first,
            await opened(gro=gro) as second,
            await opened() as sender,
        ):
            receivers = [first, second]
            expected = [[], []]

            async def receive(index, count):
                while len(got[index]) < count:
                    got[index] += [
                        payload
                        for payload, _ in await receivers[index].receive_many(limit, timeout=20)
                    ]

            got = [[], []]
            payloads = [
                ((number.to_bytes(4, "big") * size)[:size], to)
                for number, (size, to) in enumerate(given_datagrams)
            ]
            for part in portions(payloads):
                for payload, to in part:
                    expected[to].append(payload)
                assert await sender.send_many(
                    (payload, receivers[to].getsockname()) for payload, to in part
                ) == len(part)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, 0, len(expected[0]))
                    nursery.start_soon(receive, 1, len(expected[1]))
            assert got == expected

    checked_run(main)


async def test_a_run_is_one_message():
    payloads = [bytes([number]) * 1000 for number in range(64)] + [b"shorter"]
    async with (
        await opened() as server,
        await trio_uring.open_udp_socket(remote_address=server.getsockname()) as client,
    ):
        await client.send_many(payloads)
        raw = server.socket.dup()  # what the kernel has for a socket with UDP_GRO
        with raw:
            data, ancillary, *_ = await raw.recvmsg(65535, 64)
            assert data == b"".join(payloads[:64])  # 65 do not fit into one
            assert (17, 104, (1000).to_bytes(4, "little")) in ancillary
        assert await receive_payloads(server, 1) == [b"shorter"]


async def test_what_was_joined_is_split_again():
    payloads = [bytes([number]) * 1000 for number in range(64)] + [b"shorter"]
    async with udp_pair() as (client, server):
        await client.send_many(payloads)
        calls = Spy(server).calls
        got = await server.receive_many()
        assert [payload for payload, _ in got] == payloads[: len(got)]
        assert len(got) >= 64
        assert {name for name, *_ in calls} == {"recvmsg"}
        assert len(calls) <= 3
        assert await receive_payloads(server, 65 - len(got)) == payloads[len(got) :]


async def test_without_gro_the_kernel_splits():
    async with (
        await opened(gro=False) as server,
        await trio_uring.open_udp_socket(remote_address=server.getsockname()) as client,
    ):
        await client.send_many([b"x" * 1000] * 40)
        assert server.getsockopt(17, 104) == 0
        assert await receive_payloads(server, 40) == [b"x" * 1000] * 40


async def test_datagrams_larger_than_the_mtu_go_one_by_one():
    """A segment has to fit into a packet: what does not is for IP to fragment."""
    async with udp_pair(socket.AF_INET6) as (client, server):
        client.setsockopt(socket.IPPROTO_IPV6, 24, 1280)  # IPV6_MTU
        payloads = [bytes([number]) * 1400 for number in range(4)] + [b"y" * 100] * 5
        assert await client.send_many(payloads) == 9
        assert await receive_payloads(server, 9) == payloads
        assert client._limits == {None: 1399}


async def test_a_kernel_that_refuses_runs_gets_single_datagrams():
    async with udp_pair() as (client, server):
        # SO_NO_CHECK: a datagram without a checksum cannot be part of a run.
        client.setsockopt(socket.SOL_SOCKET, 11, 1)
        assert await client.send_many([b"a" * 10] * 5) == 5
        assert await receive_payloads(server, 5) == [b"a" * 10] * 5
        assert client._limits == {None: 9}
        client.setsockopt(socket.SOL_SOCKET, 11, 0)
        assert await client.send_many([b"a" * 10] * 5) == 5
        assert not client._limits
        assert await receive_payloads(server, 5) == [b"a" * 10] * 5


async def test_at_most_so_many():
    async with udp_pair() as (client, server):
        await client.send_many([b"%d" % (number % 10) for number in range(40)])
        assert len(await server.receive_many(3)) <= 3
        assert (await server.receive_from())[0] == b"3"
        assert len(await server.receive_many(36)) <= 36
        with pytest.raises(ValueError, match="max_datagrams"):
            await server.receive_many(0)


async def test_from_outside_while_it_waits():
    async with await opened() as server:
        with plain_sender(server) as sender:
            for receive in (server.receive_from, server.receive_many, server.receive_many):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    await until_blocked(server.socket.fileno())
                    sender.send(b"there")


async def test_names_are_resolved():
    async with await trio_uring.open_udp_socket(
        local_address=("localhost", 0), family=socket.AF_INET
    ) as server:
        port = server.getsockname()[1]
        async with await trio_uring.open_udp_socket(
            remote_address=("localhost", port), family=socket.AF_INET
        ) as client:
            await client.send_to(b"a")
        async with await trio_uring.open_udp_socket() as client:
            await client.send_to(b"b", ("localhost", port))
            await client.send_many([(b"c", ("localhost", port)), (b"d", ("127.0.0.1", port))])
        assert await receive_payloads(server, 4) == [b"a", b"b", b"c", b"d"]


async def test_ipv4_through_a_socket_of_ipv6():
    raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    async with trio_uring.UDPSocket(raw) as both, await opened() as server:
        await both.send_to(b"mapped", ("127.0.0.1", server.getsockname()[1]))
        payload, (host, port) = await server.receive_from()
        assert (payload, host) == (b"mapped", "127.0.0.1")
        await server.send_to(b"back", (host, port))
        assert (await both.receive_from())[1][0] == "::ffff:127.0.0.1"


async def test_options():
    async with await opened(reuse_port=True, broadcast=True) as first:
        second = await trio_uring.open_udp_socket(
            local_address=first.getsockname(), reuse_port=True
        )
        await second.aclose()
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
        assert len(first.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 4)) == 4
        with pytest.raises(OSError, match="could be opened") as caught:
            await trio_uring.open_udp_socket(local_address=first.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="no address family in common"):
        await trio_uring.open_udp_socket(local_address=("127.0.0.1", 0), remote_address=("::1", 9))
    with pytest.raises(ValueError, match="family"):
        await trio_uring.open_udp_socket(family=socket.AF_UNIX)
    async with await trio_uring.open_udp_socket(
        local_address=(None, 0), family=socket.AF_INET
    ) as wildcard:
        assert wildcard.getsockname()[0] == "0.0.0.0"


async def test_bound_and_connected():
    async with await opened() as server:
        async with await trio_uring.open_udp_socket(
            local_address=("127.0.0.1", 0), remote_address=server.getsockname()
        ) as client:
            address = client.getsockname()
            await client.send_to(b"x")
            assert await server.receive_from() == (b"x", address)


async def test_what_it_is_made_from():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        pytest.raises(ValueError, match="SOCK_DGRAM"),
    ):
        trio_uring.UDPSocket(stream)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        pytest.raises(ValueError, match="AF_INET"),
    ):
        trio_uring.UDPSocket(unix)
    with pytest.raises(TypeError, match="stdlib or a trio socket"):
        trio_uring.UDPSocket("socket")
    for sock in (
        trio.socket.socket(type=socket.SOCK_DGRAM),
        trio_uring.UringSocket(socket.socket(type=socket.SOCK_DGRAM)),
    ):
        await sock.bind((HOSTS[socket.AF_INET], 0))
        async with trio_uring.UDPSocket(sock) as server:
            assert server.socket is sock
            await server.send_to(b"self", server.getsockname())
            assert await server.receive_many() == [(b"self", server.getsockname())]


async def test_what_cannot_be_sent():
    async with await opened() as sock:
        with pytest.raises(OSError, match="address required") as caught:
            await sock.send_to(b"x")
        assert caught.value.errno == errno.EDESTADDRREQ
        for wrong in ("text", 5, [b"a", "b"]):
            with pytest.raises(TypeError):
                await sock.send_to(wrong, sock.getsockname())
        for wrong in ([("text", sock.getsockname())], [5], 5):
            with pytest.raises(TypeError):
                await sock.send_many(wrong)
        for wrong in ((b"x", 1), ("127.0.0.1",), ("127.0.0.1", 70000)):
            with pytest.raises((OSError, ValueError, TypeError, OverflowError)):
                await sock.send_to(b"x", wrong)
        await sock.send_to(b"good", sock.getsockname())
        assert (await sock.receive_from(timeout=math.inf))[0] == b"good"


async def test_all_that_is_there_comes_at_once_and_is_counted():
    async with await opened(gro=False) as server, await opened() as client:
        before = trio_uring.current_statistics()
        await client.send_many([(b"%d" % number, server.getsockname()) for number in range(30)])
        await client.send_to(b"", server.getsockname())
        got = await server.receive_many()
        assert [payload for payload, _ in got] == [b"%d" % number for number in range(30)] + [b""]
        after = trio_uring.current_statistics()
        assert after.datagrams_sent - before.datagrams_sent == 31
        assert after.datagrams_received - before.datagrams_received == 31
        assert after.bytes_sent - before.bytes_sent == 50  # 10 of one digit, 20 of two
        assert after.bytes_received - before.bytes_received == 50
