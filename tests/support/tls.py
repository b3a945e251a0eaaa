"""What the TLS tests share: a certificate, and connected pairs of TLS streams over ours.

Rules: certificates come from trustme, new for each session.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from typing import TYPE_CHECKING, Any

import trio
import trustme

from trio_uring import (
    SocketStream,
)

from .streams import (
    closing,
    unix_sockets,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


Tls = trio.SSLStream[SocketStream]

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost", "127.0.0.1")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(context)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # which some Pythons set
    return context


def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.maximum_version = version
    return context


def wrap(
    left: Any, right: Any, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> tuple[Tls, Tls]:
    client = trio.SSLStream(left, client_context(version), server_hostname="localhost")
    return client, trio.SSLStream(right, server_context(), server_side=True)


def tls_pair(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, buffer: int | None = None
) -> tuple[Tls, Tls]:
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
    """As clog of streams.py, in whole records; the one that the socket did not take goes with the
    next send."""
    tickets, stream._delayed_outgoing = stream._delayed_outgoing or b"", None
    while True:
        stream._ssl_object.write(b"c")
        record, tickets = tickets + stream._outgoing.read(), b""
        try:
            os.write(stream.transport_stream.socket.fileno(), record)
        except BlockingIOError:
            stream._delayed_outgoing = record
            return


async def receive_count(stream: Tls, count: int) -> bytes:
    got = b""
    while len(got) < count:
        chunk = await stream.receive_some()
        assert chunk
        got += chunk
    return got
