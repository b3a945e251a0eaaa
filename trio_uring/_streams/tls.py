"""TLS over TCP: trio's SSLStream and SSLListener over our streams and listeners.

Rules of this file: the TLS is trio's; names, signatures and errors are those of trio's helpers.
"""

from __future__ import annotations

import ssl

import trio

from .._options import SocketOptions
from .streams import SocketStream
from .tcp import DEFAULT_DELAY, open_tcp_listeners, open_tcp_stream


async def open_ssl_over_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    https_compatible: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    happy_eyeballs_delay: float | None = DEFAULT_DELAY,
    options: SocketOptions | None = None,
) -> trio.SSLStream[SocketStream]:
    """Connects over TCP and returns a TLS stream (trio.open_ssl_over_tcp_stream).

    The handshake happens in the first send or receive, or in `do_handshake()`.

    Args:
        host: the host to connect to; the server must have a certificate for it.
        port: the port.
        https_compatible: True: the connection may end without a close_notify, as HTTPS allows.
        ssl_context: None: ssl.create_default_context().
        happy_eyeballs_delay, options: as in open_tcp_stream.

    Raises:
        Others: the same as open_tcp_stream.

    Cancellation: all sockets opened so far are closed.
    """
    stream = await open_tcp_stream(
        host, port, happy_eyeballs_delay=happy_eyeballs_delay, options=options
    )
    try:
        if ssl_context is None:
            ssl_context = ssl.create_default_context()
            # Otherwise a connection that was cut would look like one that ended.
            if hasattr(ssl, "OP_IGNORE_UNEXPECTED_EOF"):
                ssl_context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        return trio.SSLStream(
            stream, ssl_context, server_hostname=host, https_compatible=https_compatible
        )
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def open_ssl_over_tcp_listeners(
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
    reuse_port: bool = False,
    options: SocketOptions | None = None,
) -> list[trio.SSLListener[SocketStream]]:
    """Opens listeners for TLS connections over TCP (trio.open_ssl_over_tcp_listeners).

    Args:
        port, host, backlog, reuse_port, options: as in open_tcp_listeners.
        ssl_context: a context with the server's certificate.
        https_compatible: as in open_ssl_over_tcp_stream.

    Cancellation: the listeners opened so far are closed.
    """
    listeners = await open_tcp_listeners(
        port, host=host, backlog=backlog, reuse_port=reuse_port, options=options
    )
    return [
        trio.SSLListener(listener, ssl_context, https_compatible=https_compatible)
        for listener in listeners
    ]
