"""TLS over our streams: trio's SSLStream works on them, the openers are trio's, and a list is not joined on its way.

Rules: certificates come from trustme, anew for each session. What a list becomes is counted by the ring's statistics.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from streams.support import (
    TINY,
    closing,
    count_of,
    pattern,
    receive_all,
    tcp_sockets,
    unix_sockets,
    until,
    until_blocked,
)
from trio.testing import check_two_way_stream

import trio_uring
from trio_uring import (
    SocketListener,
    SocketStream,
    open_ssl_over_tcp_listeners,
    open_ssl_over_tcp_stream,
    send_all_vectored,
    serve_ssl_over_tcp,
)
from trio_uring._cork import CORK_MAX, Cork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Tls = trio.SSLStream[SocketStream]

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost", "127.0.0.1")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(context)
    return context


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.maximum_version = version
    return context


def wrap(left: Any, right: Any, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[Tls, Tls]:
    client = trio.SSLStream(left, client_context(version), server_hostname="localhost")
    return client, trio.SSLStream(right, server_context(), server_side=True)


def tls_pair(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, buffer: int | None = None) -> tuple[Tls, Tls]:
    left, right = unix_sockets(buffer)
    return wrap(SocketStream(left), SocketStream(right), version)


async def shake_hands(client: Tls, server: Tls) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)


@contextlib.asynccontextmanager
async def connected(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, buffer: int | None = None
) -> AsyncIterator[tuple[Tls, Tls]]:
    client, server = tls_pair(version, buffer)
    async with closing(client, server):
        await shake_hands(client, server)
        yield client, server


def clog(stream: Tls) -> None:
    """As support.clog, in whole records; the one that the socket did not take goes with the next send."""
    tickets, stream._delayed_outgoing = stream._delayed_outgoing or b"", None
    while True:
        stream._ssl_object.write(b"c")
        record, tickets = tickets + stream._outgoing.read(), b""
        try:
            os.write(stream.transport_stream.socket.fileno(), record)
        except BlockingIOError:
            stream._delayed_outgoing = record
            return


# -- trio.SSLStream over our streams


@pytest.mark.parametrize("version", VERSIONS)
async def test_trios_own_suite(version: ssl.TLSVersion) -> None:
    async def maker() -> tuple[Any, Any]:
        client, server = tls_pair(version)
        await shake_hands(client, server)
        return client, server

    async def clogged() -> tuple[Any, Any]:
        client, server = tls_pair(version, TINY)
        await shake_hands(client, server)
        clog(client)
        clog(server)
        return client, server

    await check_two_way_stream(maker, clogged)


@pytest.mark.parametrize("make", [unix_sockets, tcp_sockets])
async def test_bulk_in_both_directions(make: Callable[[], Any]) -> None:
    left, right = make()
    client, server = wrap(SocketStream(left), SocketStream(right))
    data = pattern(2**20)

    async def send(stream: Tls) -> None:
        await stream.send_all(data)

    async def receive(stream: Tls) -> None:
        got = b""
        while len(got) < len(data):
            got += await stream.receive_some()
        assert got == data

    async with closing(client, server), trio.open_nursery() as nursery:
        for stream in (client, server):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)


async def test_over_a_stapled_pair_of_halves() -> None:
    left, right = unix_sockets()
    stapled = trio.StapledStream(*SocketStream(left).split())
    client, server = wrap(stapled, SocketStream(right))
    async with closing(client, server):
        await shake_hands(client, server)
        before = count_of("SENDMSG").submitted
        await send_all_vectored(client, [b"a", b"b"])
        assert count_of("SENDMSG").submitted == before + 1
        assert await receive_count(server, 2) == b"ab"


async def receive_count(stream: Tls, count: int) -> bytes:
    got = b""
    while len(got) < count:
        chunk = await stream.receive_some()
        assert chunk
        got += chunk
    return got


async def test_unwrapping_gives_our_stream_back() -> None:
    async with connected() as (client, server):
        transports = client.transport_stream, server.transport_stream
        results: dict[str, Any] = {}

        async def unwrap(name: str, stream: Tls) -> None:
            results[name] = await stream.unwrap()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unwrap, "client", client)
            nursery.start_soon(unwrap, "server", server)
        assert results == {"client": (transports[0], b""), "server": (transports[1], b"")}
        async with closing(*transports):
            await transports[0].send_all([b"in ", b"plain"])
            assert await transports[1].receive_exactly(8) == b"in plain"


async def test_closing_tells_the_peer() -> None:
    async with connected() as (client, server):
        await client.send_all(b"bye")
        await client.aclose()
        assert await receive_all(server) == b"bye"


async def test_a_connection_that_is_cut_is_not_an_end() -> None:
    async with connected() as (client, server):
        await client.transport_stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def test_closing_in_a_cancelled_scope() -> None:
    async with connected() as (client, _):
        transport = client.transport_stream
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(trio.Cancelled):
                await client.aclose()
        assert transport.socket.fileno() == -1


async def test_closing_wakes_a_blocked_receive() -> None:
    async with connected() as (client, server):
        await client.send_all(b"x")
        await server.receive_some()  # and the server's tickets are on their way

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await server.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await until_blocked(server.transport_stream.socket.fileno())
            await server.aclose()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with connected() as (client, server):
        for number in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.receive_some)
                await until_blocked(server.transport_stream.socket.fileno())
                nursery.cancel_scope.cancel()
            await client.send_all(b"%d" % number)
            assert await server.receive_some() == b"%d" % number


async def test_a_cancelled_send_breaks_the_stream_as_trio_says() -> None:
    async with connected(buffer=TINY) as (client, _):
        clog(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"x")
            await until_blocked(client.transport_stream.socket.fileno())
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"x")


async def test_a_cancelled_handshake() -> None:
    client, server = tls_pair()
    async with closing(client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            await until_blocked(client.transport_stream.socket.fileno())
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"x")


# -- openers and servers


async def echo(stream: Tls) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def quiet_echo(stream: Tls) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await echo(stream)


async def start(nursery: trio.Nursery, handler: Callable[[Tls], Awaitable[object]], **options: Any) -> int:
    serve = partial(serve_ssl_over_tcp, handler, 0, server_context(), host="127.0.0.1", **options)
    listeners: list[trio.SSLListener[SocketStream]] = await nursery.start(serve)
    assert [type(one) for one in listeners] == [trio.SSLListener]
    assert isinstance(listeners[0].transport_listener, SocketListener)
    port: int = listeners[0].transport_listener.socket.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", b"127.0.0.1"])
async def test_a_server_and_its_clients(host: Any) -> None:
    async with trio.open_nursery() as nursery:
        port = await start(nursery, echo, reuse_port=True, backlog=5)
        for _ in range(3):
            stream = await open_ssl_over_tcp_stream(host, port, ssl_context=client_context())
            async with stream:
                assert type(stream) is trio.SSLStream
                assert type(stream.transport_stream) is SocketStream
                await stream.send_all(b"hello")
                assert await receive_count(stream, 5) == b"hello"
        nursery.cancel_scope.cancel()


async def test_the_default_context_checks_certificates() -> None:
    async with trio.open_nursery() as nursery:
        port = await start(nursery, quiet_echo)
        async with closing(stream := await open_ssl_over_tcp_stream("localhost", port)):
            assert not stream.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.do_handshake()
            assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        nursery.cancel_scope.cancel()


async def test_the_name_is_checked() -> None:
    left, right = unix_sockets()
    client = trio.SSLStream(SocketStream(left), client_context(), server_hostname="example.org")
    server = trio.SSLStream(SocketStream(right), server_context(), server_side=True)

    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(quiet_echo, server)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.do_handshake()
        assert "example.org" in str(caught.value.__cause__)
        await client.aclose()


@pytest.mark.parametrize("https", [True, False])
async def test_https_compatible(https: bool) -> None:
    [listener] = await open_ssl_over_tcp_listeners(0, server_context(), host="127.0.0.1", https_compatible=https)
    async with listener:
        port = listener.transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        client = await open_ssl_over_tcp_stream("localhost", port, ssl_context=client_context(), https_compatible=https)
        server = await listener.accept()
        async with closing(client, server):
            await shake_hands(client, server)
            await client.transport_stream.aclose()
            if https:
                assert await server.receive_some() == b""
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await server.receive_some()


async def test_a_context_that_will_not_do_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(AttributeError):
            await open_ssl_over_tcp_stream("127.0.0.1", server.getsockname()[1], ssl_context="nonsense")  # type: ignore[arg-type]
        peer = server.accept()[0]
        with peer:
            assert peer.recv(1) == b""


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match="failed"):
        await open_ssl_over_tcp_stream("127.0.0.1", port)


# -- lists


def sends() -> tuple[int, int]:
    return count_of("SEND").submitted, count_of("SENDMSG").submitted


BUFFERS = [b"header", bytearray(b"body"), memoryview(b"-more-")[1:-1], b"", b"end"]


async def test_a_list_goes_out_as_one_operation() -> None:
    async with connected() as (client, server):
        before = sends()
        await send_all_vectored(client, BUFFERS)
        assert sends() == (before[0], before[1] + 1)
        assert await receive_count(server, 17) == b"headerbodymoreend"
        await client.send_all(b"single")
        assert sends() == (before[0] + 1, before[1] + 1)
        assert await receive_count(server, 6) == b"single"


async def test_each_buffer_reaches_the_tls_layer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own memory: nothing is joined or copied before it is encrypted."""
    written: list[Any] = []
    real = trio.SSLStream.send_all

    async def send_all(self: Tls, data: Any) -> None:
        written.append(data if isinstance(data, bytes) else data.obj)
        await real(self, data)

    async with connected() as (client, server):
        monkeypatch.setattr(trio.SSLStream, "send_all", send_all)
        buffers = [b"bytes", bytearray(b"bytearray"), pattern(100_000)]
        await send_all_vectored(client, buffers)
        assert all(one is other for one, other in zip(written, buffers, strict=True))
        assert await receive_count(server, 100_014) == b"bytes" + b"bytearray" + pattern(100_000)


async def test_before_tls_1_3_each_buffer_is_sent_by_itself() -> None:
    """A write may have to wait there for an answer to what it wrote."""
    async with connected(ssl.TLSVersion.TLSv1_2) as (client, server):
        before = sends()
        await send_all_vectored(client, BUFFERS)
        assert sends() == (before[0] + 4, before[1])
        assert await receive_count(server, 17) == b"headerbodymoreend"


async def test_a_list_makes_the_handshake_first() -> None:
    client, server = tls_pair()
    before = sends()
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_all_vectored, client, [b"ab", b"cd"])
        assert await receive_count(server, 4) == b"abcd"
        assert sends()[1] == before[1] + 1
    client, server = tls_pair()
    async with closing(client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_all_vectored, server, [b"ab", b"cd"])
        assert await receive_count(client, 4) == b"abcd"


async def test_what_is_held_back_is_bounded() -> None:
    async with connected() as (client, server):
        data = pattern(4 * CORK_MAX)
        parts = [data[start : start + 10_000] for start in range(0, len(data), 10_000)]
        sizes = []

        async def watch() -> None:
            while True:
                cork = client.transport_stream._cork
                sizes.append(cork._size if cork is not None else 0)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(send_all_vectored, client, parts)
            assert await receive_count(server, len(data)) == data
            nursery.cancel_scope.cancel()
        assert CORK_MAX - 20_000 < max(sizes) < CORK_MAX
        assert client.transport_stream._cork is None


def held(transport: SocketStream) -> int:
    return len(transport._cork._records) if transport._cork is not None else 0


async def test_an_interrupted_list_leaves_a_stream_that_works() -> None:
    """What was encrypted of it goes out with the next send: the peer counts records."""
    async with connected() as (client, server):
        transport = client.transport_stream
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all_vectored, client, [b"%d" % number for number in range(10)])
                await until(lambda: held(transport) >= 3, "three are held back")
                scope.cancel()
        went = b"0123456789"[: held(transport)]
        assert 3 <= len(went) < 10
        before = sends()
        await client.send_all(b"next")
        assert sends() == (before[0], before[1] + 1)
        assert await receive_count(server, len(went) + 4) == went + b"next"
        assert transport._cork is None
        await client.send_all(b"last")
        assert sends() == (before[0] + 1, before[1] + 1)
        assert await receive_count(server, 4) == b"last"


async def test_closing_after_an_interrupted_list() -> None:
    async with connected() as (client, server):
        transport = client.transport_stream
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all_vectored, client, [b"a"] * 10)
                await until(lambda: held(transport) >= 3, "three are held back")
                scope.cancel()
        count = held(transport)
        await client.aclose()
        assert await receive_all(server) == b"a" * count


async def test_a_list_that_is_blocked_and_cancelled() -> None:
    async with connected(buffer=TINY) as (client, _):
        clog(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all_vectored, client, [b"a", b"b"])
            await until_blocked(client.transport_stream.socket.fileno())
            nursery.cancel_scope.cancel()
        assert client.transport_stream._cork is None
        with pytest.raises(trio.BrokenResourceError):
            await send_all_vectored(client, [b"a", b"b"])


async def test_a_list_to_a_peer_that_is_gone() -> None:
    async with connected() as (client, server):
        await server.transport_stream.aclose()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await send_all_vectored(client, [b"a", b"b"])
            assert client.transport_stream._cork is None


async def test_a_list_on_a_closed_or_unwrapped_stream() -> None:
    async with connected() as (client, server):
        async with closing(client.transport_stream, server.transport_stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.unwrap)
                nursery.start_soon(server.unwrap)
            with pytest.raises(trio.ClosedResourceError):
                await send_all_vectored(client, [b"a", b"b"])


async def test_two_tasks_sending_lists() -> None:
    async with connected(buffer=TINY) as (client, server):
        clog(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all_vectored, client, [b"12", b"34"])
            await until_blocked(client.transport_stream.socket.fileno())
            with pytest.raises(trio.BusyResourceError):
                await send_all_vectored(client, [b"56", b"78"])
            got = b""
            while not got.endswith(b"1234"):
                got += await server.receive_some()
        assert got.strip(b"c") == b"1234"


async def test_the_transports_timeout_is_kept() -> None:
    async with connected(buffer=TINY) as (client, server):
        client.transport_stream.send_timeout = 30.0
        await send_all_vectored(client, [b"a", b"b", b"c"])
        assert await receive_count(server, 3) == b"abc"
        client.transport_stream.send_timeout = 0.01
        clog(client)
        with pytest.raises(trio.TooSlowError):
            await send_all_vectored(client, [b"a", b"b"])


async def test_another_tasks_record_is_not_held_back() -> None:
    """It takes along what is held, so that the order of the records stays."""
    cork = Cork()
    assert cork.holds(b"mine")
    answers = []

    async def other() -> None:
        answers.append(cork.holds(b"theirs"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
    assert answers == [False]
    assert cork.take() == [b"mine", b"theirs"]
    assert cork.empty
    cork.task = None
    assert not cork.holds(b"last")


async def test_frames_over_tls_are_one_operation_each() -> None:
    async with connected() as (client, server):
        before = sends()
        await trio_uring.send_frame(client, b"payload", 100)
        assert sends() == (before[0], before[1] + 1)
        assert await trio_uring.receive_frame(server, 100) == b"payload"
