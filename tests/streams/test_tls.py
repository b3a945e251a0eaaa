"""TLS over our streams: trio's SSLStream works on them, and the openers are trio's.

Rules: the TLS is trio's, and so are the rules for what a cancellation does.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.ports import lone_port
from support.streams import (
    TINY,
    closing,
    count_of,
    pattern,
    receive_all,
    tcp_sockets,
    unix_sockets,
    until_blocked,
)
from support.tls import (
    VERSIONS,
    Tls,
    client_context,
    clog,
    connected,
    receive_count,
    server_context,
    shake_hands,
    tls_pair,
    wrap,
)
from trio.testing import check_two_way_stream

from trio_uring import (
    SocketListener,
    SocketStream,
    open_ssl_over_tcp_listeners,
    open_ssl_over_tcp_stream,
    send_all_vectored,
    serve_ssl_over_tcp,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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


async def start(
    nursery: trio.Nursery, handler: Callable[[Tls], Awaitable[object]], **options: Any
) -> int:
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
    [listener] = await open_ssl_over_tcp_listeners(
        0, server_context(), host="127.0.0.1", https_compatible=https
    )
    async with listener:
        port = listener.transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        client = await open_ssl_over_tcp_stream(
            "localhost", port, ssl_context=client_context(), https_compatible=https
        )
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
            await open_ssl_over_tcp_stream(
                "127.0.0.1", server.getsockname()[1], ssl_context="nonsense"
            )  # type: ignore[arg-type]
        peer = server.accept()[0]
        with peer:
            assert peer.recv(1) == b""


async def test_nobody_there() -> None:
    with pytest.raises(OSError, match="failed"):
        await open_ssl_over_tcp_stream("127.0.0.1", lone_port())
