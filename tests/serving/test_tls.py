"""Servers with TLS: their limits, their graceful end, and headers of the PROXY protocol.

Rules of this file: what time decides is decided by a MockClock, unless TCP is used.
"""

from __future__ import annotations

import contextlib
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.served import Door, Listening, ask, echo, serving
from support.streams import passes, receive_all
from support.tls import client_context, server_context

from trio_uring import (
    ProxyListener,
    Shutdown,
    SocketStream,
    open_tcp_stream,
    serve_ssl_over_tcp,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

# As the specification has them: from 192.0.2.7, port 54321.
HEADERS = {
    "version 1": b"PROXY TCP4 192.0.2.7 198.51.100.1 54321 443\r\n",
    "version 2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc6\x33\x64\1\xd4\x31\1\xbb",
}


async def test_with_tls_the_first_byte_is_that_of_the_handshake(
    autojump_clock: MockClock,
) -> None:
    door, called = Door(), []

    async def handler(stream: Any) -> None:
        called.append(stream)
        await echo(stream)

    listener = trio.SSLListener(door, server_context())
    async with serving(handler, listener, first_byte_timeout=5, idle_timeout=20):
        async with door.knock() as silent:
            assert await receive_all(silent) == b""
        assert (trio.current_time(), len(called)) == (5, 0)
        client = trio.SSLStream(door.knock(), client_context(), server_hostname="localhost")
        async with client:
            await ask(client, b"x" * 100_000)
            # A handshake that stops in the middle is idle.
            async with door.knock() as begun:
                await begun.send_all(b"\x16\x03\x01")
                assert await receive_all(begun) == b""
            assert trio.current_time() == 25


async def test_a_broken_connection_ends_the_server_as_in_trio() -> None:
    door = Door()
    listener = trio.SSLListener(door, server_context())
    with pytest.RaisesGroup(
        pytest.RaisesExc(trio.BrokenResourceError, check=is_ssl_error), flatten_subgroups=True
    ):
        async with serving(echo, listener, max_connections=5, idle_timeout=5):
            async with door.knock() as client:
                await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await receive_all(client)
                await passes(10)
                await trio.sleep_forever()


def is_ssl_error(exc: BaseException) -> bool:
    return isinstance(exc.__cause__, ssl.SSLError)


@pytest.mark.parametrize("https_compatible", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls(https_compatible: bool, version: ssl.TLSVersion) -> None:
    shutdown, ends = Shutdown(quiet=0.05), []

    async def handler(stream: trio.SSLStream[SocketStream]) -> None:
        try:
            await echo(stream)
            ends.append("end")
            await stream.send_all(b"bye")  # which TLS does not have without the client's own end
        except trio.BrokenResourceError:
            ends.append("broken")
            raise

    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_ssl_over_tcp,
            handler,
            0,
            server_context(),
            host="127.0.0.1",
            https_compatible=https_compatible,
            shutdown=shutdown,
        )
        [listener] = await nursery.start(serve)
        port = listener.transport_listener.socket.getsockname()[1]
        transport = await open_tcp_stream("127.0.0.1", port)
        idle = await open_tcp_stream("127.0.0.1", port)  # in the middle of its handshake
        client = trio.SSLStream(
            transport, client_context(version), server_hostname="localhost", https_compatible=True
        )
        async with transport, idle:
            await ask(client)
            shutdown.start()
            assert await receive_all(client) == b""
            assert await receive_all(idle) == b""
    assert ends.count("broken") == 2
    assert ends.count("end") == (2 if https_compatible else 0)


@pytest.mark.parametrize("serve", ["ours", "trio's"])
@pytest.mark.parametrize("header", HEADERS)
async def test_not_a_byte_of_tls_is_lost(serve: str, header: str) -> None:
    pytest.importorskip("proxyprotocol")
    clients: list[Any] = []
    door = Door()
    listener = trio.SSLListener(
        ProxyListener(Listening(door), trusted=["unix:"]),
        server_context(),
        https_compatible=True,
    )

    async def handler(stream: Any) -> None:
        await stream.do_handshake()
        clients.append(stream.transport_stream.remote_address)
        await echo(stream)

    async with listener, trio.open_nursery() as nursery:
        if serve == "ours":
            context: Any = serving(handler, listener, first_byte_timeout=60, idle_timeout=60)
        else:
            context = contextlib.AsyncExitStack()
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        async with context:
            # The header and the client's hello arrive together.
            client = trio.SSLStream(
                _Late(door.knock(), HEADERS[header]),
                client_context(),
                server_hostname="localhost",
                https_compatible=True,
            )
            async with client:
                body = bytes(range(256)) * 1000
                async with trio.open_nursery() as sending:
                    sending.start_soon(client.send_all, body)
                    got = b""
                    while len(got) < len(body):
                        got += await client.receive_some()
                assert got == body
        nursery.cancel_scope.cancel()
    assert clients == [("192.0.2.7", 54321)]


class _Late(trio.abc.Stream):
    """Sends a header together with the first bytes."""

    def __init__(self, stream: SocketStream, header: bytes) -> None:
        self._stream, self._header = stream, header

    async def send_all(self, data: Any) -> None:
        header, self._header = self._header, b""
        await self._stream.send_all(header + bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
