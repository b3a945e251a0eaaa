"""Where a datagram arrived, and where an answer leaves from.

Rules of this file: every address in 127.0.0.0/8 is this host's.
"""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from support.streams import until_blocked
from support.udp import BUFFER, opened

import trio_uring
from trio_uring import Local

ASKED = "127.0.0.9"
LOOPBACK = socket.if_nametoindex("lo")


async def wildcard(family=socket.AF_INET, **options):
    sock = await trio_uring.open_udp_socket(local_address=(None, 0), family=family, **options)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    return sock


async def client_of(server, host=ASKED):
    """It hears only the address that it has asked."""
    port = server.getsockname()[1]
    return await trio_uring.open_udp_socket(remote_address=(host, port))


@pytest.mark.parametrize("gro", [False, True])
async def test_a_server_answers_from_the_address_that_was_asked(gro):
    async with await wildcard(gro=gro) as server, await client_of(server) as client:
        await client.send_to(b"question")
        payload, address, local = await server.receive_from(local=True)
        assert (payload, address, local.host) == (b"question", client.getsockname(), ASKED)
        await server.send_to(b"answer", address, local=local)
        assert await client.receive_from(timeout=20) == (b"answer", client.getpeername())


async def test_many_are_answered_from_the_addresses_that_were_asked():
    async with await wildcard() as server:
        async with await client_of(server) as nine, await client_of(server, "127.0.0.8") as eight:
            for client in (nine, eight, nine):
                await client.send_many([b"a" * 100] * 3)
            got = []
            while len(got) < 9:
                got += await server.receive_many(4, local=True)
            asked = [local.host for _, _, local in got]
            assert asked == [ASKED] * 3 + ["127.0.0.8"] * 3 + [ASKED] * 3
            assert await server.send_many(got) == 9
            for client, count in ((nine, 6), (eight, 3)):
                answers = []
                while len(answers) < count:
                    answers += await client.receive_many(timeout=20)
                assert answers == [(b"a" * 100, (client.getpeername()))] * count


async def test_one_that_waits_is_told():
    async with await wildcard() as server, await client_of(server) as client:
        got = []

        async def wait():
            got.append(await server.receive_from(local=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until_blocked(server.socket.fileno())
            await client.send_to(b"x")
        assert got == [(b"x", client.getsockname(), Local(ASKED, LOOPBACK))]


async def test_ipv6_and_ipv4_through_it():
    raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    raw.bind(("::", 0))
    async with trio_uring.UDPSocket(raw) as server:
        for host, local in (("::1", "::1"), (ASKED, f"::ffff:{ASKED}")):
            async with await client_of(server, host) as client:
                await client.send_to(b"x")
                payload, address, told = await server.receive_from(local=True)
                assert (payload, told) == (b"x", Local(local, LOOPBACK))
                await server.send_to(b"y", address, local=told)
                await server.send_many([(b"z", address, told), (b"z", address, told)])
                for wanted in (b"y", b"z", b"z"):
                    assert (await client.receive_from(timeout=20))[0] == wanted


async def test_what_came_before_it_was_asked_for():
    async with await wildcard() as server, await client_of(server) as client:
        await client.send_many([b"a" * 10] * 3)
        await client.send_to(b"b")
        assert (await server.receive_from())[0] == b"a" * 10
        first = await server.receive_from(local=True)  # taken with the one before, as one message
        assert first[2] == Local("")
        assert (await server.receive_from(local=True))[2] == Local("")
        last = await server.receive_from(local=True)
        assert last == (b"b", client.getsockname(), Local(ASKED, 0))
        await server.send_many([first, last])
        assert await client.receive_from(timeout=20) == (b"b", client.getpeername())
        await client.send_to(b"c")
        assert (await server.receive_from(local=True))[2] == Local(ASKED, LOOPBACK)
        await client.send_to(b"d")
        assert await server.receive_from() == (b"d", client.getsockname())


async def test_an_interface_without_an_address():
    async with await opened() as server, await wildcard() as client:
        await client.send_to(b"x", server.getsockname(), local=Local("", LOOPBACK))
        assert (await server.receive_from())[0] == b"x"
        with pytest.raises(OSError, match=r"No such device|unreachable|Invalid") as caught:
            await client.send_to(b"x", server.getsockname(), local=Local("", 2**30))
        assert caught.value.errno in (errno.ENODEV, errno.ENETUNREACH, errno.EINVAL)


async def test_a_local_address_that_is_none():
    async with await opened() as server, await wildcard() as client:
        to = server.getsockname()
        for wrong in (Local("localhost"), Local("::1"), Local("127.0.0.1", None)):
            with pytest.raises(ValueError, match="local must be a numeric"):
                await client.send_to(b"x", to, local=wrong)
            with pytest.raises(ValueError, match="local must be a numeric"):
                await client.send_many([(b"x", to, wrong)])
        for send in (
            client.send_to(b"x", to, local=Local("192.0.2.1")),  # of nobody, for documentation
            client.send_many([(b"x", to), (b"x", to, Local("192.0.2.1"))]),
        ):
            with pytest.raises(OSError, match=r"Invalid|unreachable|assign") as caught:
                await send
            assert caught.value.errno in (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL)
        assert client.datagrams_sent == 1
        assert (await server.receive_from())[0] == b"x"
