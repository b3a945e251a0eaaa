"""dnspython's trio backend against a small DNS server: UDP, TCP, TLS, and its resolver."""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING, Any

import dns.asyncbackend
import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import pytest
import trio
from support.endtoend import SECONDS_MAX

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.endtoend import Certificates

ZONE = {
    ("here.test.", "A"): ["192.0.2.1", "192.0.2.2"],
    ("here.test.", "AAAA"): ["2001:db8::1"],
    ("large.test.", "TXT"): [f'"{number:03} {"x" * 200}"' for number in range(100)],
}


def answer(wire: bytes, most: int | None = None) -> bytes:
    """The response to a query, cut to a header with TC set if it is longer than `most` bytes."""
    query = dns.message.from_wire(wire)
    response = dns.message.make_response(query)
    question = query.question[0]
    records = ZONE.get((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
    if records is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    else:
        response.answer.append(
            dns.rrset.from_text(question.name, 60, "IN", question.rdtype, *records)
        )
    found = response.to_wire()
    if most is not None and len(found) > most:
        response.answer.clear()
        response.flags |= dns.flags.TC
        found = response.to_wire()
    return found


class Server:
    """Answers from ZONE over UDP and TCP, on the same port."""

    def __init__(self) -> None:
        self.drop = 0  # queries over UDP that get no answer
        self.dropped_all: Callable[[], None] = lambda: None  # is called with the last of these
        self.forge = False  # each answer over UDP comes after one from another address
        self.seen: list[str] = []
        self.udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self.stranger = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)

    @property
    def port(self) -> int:
        return self.udp.getsockname()[1]  # type: ignore[no-any-return]

    async def serve_udp(self) -> None:
        while True:
            wire, address = await self.udp.recvfrom(65535)
            self.seen.append("udp")
            if self.drop:
                self.drop -= 1
                if not self.drop:
                    self.dropped_all()
                continue
            if self.forge:
                await self.stranger.sendto(answer(wire), address)
            await self.udp.sendto(answer(wire, most=512), address)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        self.seen.append("tcp")
        reader = trio_uring.BufferedReceiveStream(stream)
        async with stream:
            with contextlib.suppress(trio_uring.IncompleteReadError):
                while True:
                    [size] = struct.unpack(">H", await reader.receive_exactly(2))
                    found = answer(await reader.receive_exactly(size))
                    await stream.send_all(struct.pack(">H", len(found)) + found)


async def bound_to_one_port(server: Server) -> trio.SocketListener:
    """Binds the server's UDP socket and a listener to the same port, which is to be free for
    both."""
    for _ in range(100):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        try:
            await server.udp.bind(listener.socket.getsockname())
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            await listener.aclose()
        else:
            return listener
    raise AssertionError("100 ports that are free for TCP are taken for UDP")


@contextlib.asynccontextmanager
async def serving(tls: Certificates | None = None) -> AsyncIterator[Server]:
    server = Server()
    with server.udp, server.stranger:
        listener: Any = await bound_to_one_port(server)
        await server.stranger.bind(("127.0.0.1", 0))
        if tls is not None:
            listener = trio.SSLListener(listener, tls.server(), https_compatible=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_udp)
            nursery.start_soon(trio.serve_listeners, server.serve_stream, [listener])
            yield server
            nursery.cancel_scope.cancel()


def resolver(server: Server) -> dns.asyncresolver.Resolver:
    made = dns.asyncresolver.Resolver(configure=False)
    made.nameservers = ["127.0.0.1"]
    made.port = server.port
    made.timeout = made.lifetime = SECONDS_MAX
    return made


def texts(response: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in response.answer for record in rrset]


async def test_udp() -> None:
    async with serving() as server:
        query = dns.message.make_query("here.test", "A")
        response = await dns.asyncquery.udp(
            query, "127.0.0.1", timeout=SECONDS_MAX, port=server.port
        )
    assert sorted(texts(response)) == ["192.0.2.1", "192.0.2.2"]
    assert server.seen == ["udp"]


async def test_udp_over_a_socket_that_is_kept() -> None:
    backend = dns.asyncbackend.get_default_backend()
    assert backend.name() == "trio"
    async with serving() as server:
        sock: Any
        async with await backend.make_socket(
            trio.socket.AF_INET,
            trio.socket.SOCK_DGRAM,
            0,
            ("127.0.0.1", 0),
            ("127.0.0.1", server.port),
        ) as sock:
            assert isinstance(sock.socket, trio_uring.UringSocket)
            for rdtype in ("A", "AAAA") * 10:
                query = dns.message.make_query("here.test", rdtype)
                response = await dns.asyncquery.udp(
                    query, "127.0.0.1", timeout=SECONDS_MAX, port=server.port, sock=sock
                )
                assert sorted(texts(response)) == ZONE["here.test.", rdtype]


async def test_many_queries_at_the_same_time() -> None:
    answered = []

    async def ask(server: Server) -> None:
        query = dns.message.make_query("here.test", "AAAA")
        answered.append(
            await dns.asyncquery.udp(query, "127.0.0.1", timeout=SECONDS_MAX, port=server.port)
        )

    async with serving() as server, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, server)
    assert [texts(response) for response in answered] == [["2001:db8::1"]] * 50


async def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    async with serving() as server:
        query = dns.message.make_query("large.test", "TXT")
        response, used_tcp = await dns.asyncquery.udp_with_fallback(
            query, "127.0.0.1", timeout=SECONDS_MAX, port=server.port
        )
    assert used_tcp
    assert sorted(texts(response)) == ZONE["large.test.", "TXT"]
    assert server.seen == ["udp", "tcp"]


async def test_tls(certificates: Certificates) -> None:
    async with serving(certificates) as server:
        query = dns.message.make_query("large.test", "TXT")
        response = await dns.asyncquery.tls(
            query,
            "127.0.0.1",
            timeout=SECONDS_MAX,
            port=server.port,
            ssl_context=certificates.client(),
            server_hostname="127.0.0.1",
        )
    assert sorted(texts(response)) == ZONE["large.test.", "TXT"]
    assert server.seen == ["tcp"]


async def test_the_resolver() -> None:
    async with serving() as server:
        asked = resolver(server)
        found = await asked.resolve("here.test", "A")
        assert sorted(record.to_text() for record in found) == ["192.0.2.1", "192.0.2.2"]
        assert len(await asked.resolve("large.test", "TXT")) == 100
        assert len(list((await asked.resolve_name("here.test")).addresses())) == 3
        with pytest.raises(dns.resolver.NXDOMAIN):
            await asked.resolve("elsewhere.test", "A")


async def test_the_resolver_asks_again() -> None:
    async with serving() as server:
        server.drop = 2
        asked = resolver(server)
        asked.timeout = 0.05

        def be_patient() -> None:
            asked.timeout = SECONDS_MAX  # the answer that comes may take its time

        server.dropped_all = be_patient
        assert len(await asked.resolve("here.test", "A", lifetime=SECONDS_MAX)) == 2
    assert server.seen == ["udp"] * 3


async def test_a_timeout() -> None:
    async with serving() as server:
        server.drop = 1
        query = dns.message.make_query("here.test", "A")
        with pytest.raises(dns.exception.Timeout):
            await dns.asyncquery.udp(query, "127.0.0.1", timeout=0.02, port=server.port)
        assert (
            len(
                texts(
                    await dns.asyncquery.udp(
                        query, "127.0.0.1", timeout=SECONDS_MAX, port=server.port
                    )
                )
            )
            == 2
        )


async def test_answers_of_a_stranger() -> None:
    async with serving() as server:
        server.forge = True
        query = dns.message.make_query("here.test", "A")
        where: dict[str, Any] = {"where": "127.0.0.1", "port": server.port, "timeout": SECONDS_MAX}
        with pytest.raises(dns.query.UnexpectedSource):
            await dns.asyncquery.udp(query, **where)
        assert len(texts(await dns.asyncquery.udp(query, **where, ignore_unexpected=True))) == 2
