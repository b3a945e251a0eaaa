"""What a UDP socket asks of the kernel, the socket module and trio, and their refusals.

Rules of this file: the socket module's calls are watched where they are made (`Spy`).
"""

from __future__ import annotations

import errno
import socket
import sys

import pytest
import trio
from support.streams import checked_run
from support.udp import Spy, opened, plain_sender, receive_payloads, udp_pair
from trio._socket import _SocketType
from trio.testing._fake_net import FakeNet

import trio_uring

SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_RCVMARK = 35, 37, 75
RECEIVES = pytest.mark.parametrize("receive", ["receive_from", "receive_many"])


# -- runs that the kernel refuses


@pytest.mark.parametrize("bad", [("127.0.0.1", 0), ("240.0.0.1", 9)])
async def test_a_bad_address_is_no_setting(bad):
    """Its datagrams fail alone, too: so it is not segmentation that is refused."""
    async with await opened() as server, await opened() as client:
        good = server.getsockname()
        with pytest.raises(OSError) as caught:  # noqa: PT011  (which one is the kernel's)
            await client.send_many([(b"first", good)] + [(b"x" * 100, bad)] * 3)
        assert caught.value.errno in (errno.EINVAL, errno.ENETUNREACH)
        assert client.datagrams_sent == 1
        calls = Spy(client).calls
        assert await client.send_many([(b"y" * 100, good)] * 64) == 64
        assert len(calls) == 1
        assert await receive_payloads(server, 65) == [b"first"] + [b"y" * 100] * 64


async def test_a_route_that_takes_no_runs_is_remembered_alone():
    """One address is behind a small MTU; to the other one runs go on."""
    raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    async with trio_uring.UDPSocket(raw) as client:
        client.setsockopt(socket.IPPROTO_IPV6, 24, 1280)  # IPV6_MTU: nothing to IPv4
        async with await opened(socket.AF_INET6) as small, await opened() as large:
            to_small = small.getsockname()
            to_large = (f"::ffff:{large.getsockname()[0]}", large.getsockname()[1])
            calls = Spy(client).calls
            for _ in range(2):
                batch = [(b"s" * 1400, to_small)] * 3 + [(b"l" * 1400, to_large)] * 3
                await client.send_many(batch)
            assert len(calls) == 1 + 2 * (3 + 1)  # refused once
            assert await receive_payloads(small, 6) == [b"s" * 1400] * 6
            assert await receive_payloads(large, 6) == [b"l" * 1400] * 6


# -- control data that is cut


@RECEIVES
async def test_options_of_the_users_leave_room_for_the_size_of_segments(receive):
    async with udp_pair() as (client, server):
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 1 << 3 | 1 << 4)
        server.setsockopt(socket.SOL_SOCKET, SO_RCVMARK, 1)
        await client.send_many([b"%03d" % number + b"x" * 97 for number in range(20)])
        got = []
        while len(got) < 20:
            one = await getattr(server, receive)(timeout=20)
            got += one if isinstance(one, list) else [one]
        assert [payload[:3] for payload, _ in got] == [b"%03d" % number for number in range(20)]


@RECEIVES
async def test_what_may_be_joined_is_never_given_out(receive):
    """There was no room for the size of the segments: it is told, and there is from then on."""
    async with udp_pair() as (client, server):
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        server._control_max = 40
        for payload in (b"lost", b"kept"):
            await client.send_many([payload] * 5)
        with pytest.raises(OSError, match="control data was cut") as caught:
            await getattr(server, receive)()
        assert caught.value.errno == errno.EMSGSIZE
        assert await receive_payloads(server, 5) == [b"kept"] * 5


async def test_control_data_that_is_cut_joins_nothing_without_gro():
    async with udp_pair(gro=False) as (client, server):
        server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        server._control_max = 40
        await client.send_many([b"x" * 10] * 5)
        assert await server.receive_from(local=True)
        assert await receive_payloads(server, 4) == [b"x" * 10] * 4


async def test_gro_that_is_set_later_is_noticed():
    async with udp_pair(gro=False) as (client, server):
        server.setsockopt(socket.IPPROTO_UDP, 104, 1)
        await client.send_many([b"x" * 10] * 5)
        assert await receive_payloads(server, 5) == [b"x" * 10] * 5


# -- addresses


async def test_what_is_not_strictly_numeric_is_resolved_by_trio():
    """The socket module would look it up itself, and block the thread."""

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host, port, *args):
            asked.append((host, port))
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", int(port)))]

        async def getnameinfo(self, sockaddr, flags):
            raise NotImplementedError

    asked = []
    async with await opened() as server, await opened() as client:
        port = server.getsockname()[1]
        calls = Spy(client).calls
        trio.socket.set_custom_hostname_resolver(Resolver())
        given = ["127.0.0.1", "127.1", "127.0.0.1 and more", "name"]
        for host in given:
            await client.send_to(b"one", (host, port))
        await client.send_many([(b"many", (host, port)) for host in given])
        await client.send_to(b"port", ("127.0.0.1", str(port)))
        assert {call[-1] for call in calls} == {("127.0.0.1", port)}
        assert asked == [(b"127.0.0.1 and more", port), (b"name", port)] * 2
        assert await receive_payloads(server, 9) == [b"one"] * 4 + [b"many"] * 4 + [b"port"]


async def test_addresses_are_refused_as_the_socket_module_does():
    async with await opened() as server, await opened(socket.AF_INET6) as server6:
        host, port = good = server.getsockname()
        await server.send_to(b"x", good)
        for wrong in ((host, float(port)), (host, 70000), (host,), (*good, 0), [host, port], 5):
            many = server.send_many([(b"x", good), (b"x", wrong)])
            for send in (server.send_to(b"x", wrong), many):
                with pytest.raises((TypeError, ValueError, OverflowError, OSError)):
                    await send
        for wrong in (("::1", 9, 0, "lo"), ("::1", 9, "flow")):
            with pytest.raises(TypeError):
                await server6.send_to(b"x", wrong)


_hook = []


async def test_audit_hooks_see_and_stop_a_send():
    def hook(event, arguments):
        if _hook and event.startswith("socket.send"):
            _hook[0](event, arguments[1])

    def refuse(event, address):
        seen.append((event, address))
        if len(seen) == 4:
            raise PermissionError("not there")

    seen = []
    sys.addaudithook(hook)  # for good
    async with await opened() as server, await opened() as client:
        to = server.getsockname()
        _hook.append(refuse)
        try:
            await client.send_to(b"a", to)
            await client.send_to([b"b", b"b"], to)
            await client.send_many([(b"d", to)])
            with pytest.raises(PermissionError, match="not there"):
                await client.send_to(b"c", to)
        finally:
            _hook.clear()
        events = ["sendto", "sendmsg", "sendto", "sendto"]
        assert seen == [(f"socket.{event}", to) for event in events]
        assert await receive_payloads(server, 3) == [b"a", b"bb", b"d"]
        with pytest.raises(trio.TooSlowError):
            await server.receive_from(timeout=0)


# -- options and runs


async def test_no_option_of_tcp_is_set(monkeypatch):
    def spy(self, level, option, *value):
        levels.append(level)
        return set_option(self, level, option, *value)

    levels, set_option = [], _SocketType.setsockopt
    monkeypatch.setattr(_SocketType, "setsockopt", spy)
    async with udp_pair(), trio_uring.UDPSocket(trio.socket.socket(type=socket.SOCK_DGRAM)):
        assert levels
        assert socket.IPPROTO_TCP not in levels


async def test_a_custom_socket_factory_is_asked():
    class Factory(trio.abc.SocketFactory):
        def socket(self, family, kind, proto):
            sock = trio.socket.from_stdlib_socket(socket.socket(family, kind, proto))
            made.append(sock)
            return sock

    made: list[trio.socket.SocketType] = []
    trio.socket.set_custom_socket_factory(Factory())
    async with await trio_uring.open_udp_socket(local_address=("127.0.0.1", 0)) as sock:
        assert made == [sock.socket]
        await sock.send_to(b"to itself", sock.getsockname())
        assert await receive_payloads(sock, 1) == [b"to itself"]


async def test_a_socket_that_is_none_of_the_systems():
    FakeNet().enable()
    with pytest.raises(TypeError, match="requires a socket of the system's"):
        await trio_uring.open_udp_socket()


@RECEIVES
def test_another_run_on_another_backend(receive):
    """A socket that was used in a run on io_uring is used in one without it, and again."""
    raw = socket.socket(type=socket.SOCK_DGRAM)
    raw.bind(("127.0.0.1", 0))
    sock = trio_uring.UDPSocket(raw)

    async def main(backend):
        with trio.move_on_after(0.01) as scope:
            await getattr(sock, receive)()
        assert scope.cancelled_caught
        with plain_sender(sock) as sender:
            sender.send(b"from " + backend.encode())
        assert await receive_payloads(sock, 1) == [b"from " + backend.encode()]
        await sock.send_to(b"to itself", sock.getsockname())
        assert await receive_payloads(sock, 1) == [b"to itself"]

    for backend in ("auto", "epoll", "auto"):
        trio_uring.run(main, backend, backend=backend)
    checked_run(sock.aclose)
