"""TLS over TCP: trio's SSLStream and SSLListener on our streams and listeners.

Rules of this file: the TLS is trio's; names, signatures and errors are those of trio's helpers.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from .._options import SocketOptions
from .streams import SocketStream
from .tcp import DEFAULT_DELAY, open_tcp_listeners, open_tcp_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def open_ssl_over_tcp_stream(
    host: str | bytes,
    port: int,
    *,
    https_compatible: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    happy_eyeballs_delay: float | None = DEFAULT_DELAY,
    options: SocketOptions | None = None,
) -> trio.SSLStream[SocketStream]:
    """Connects over TCP, and makes a TLS stream of it (trio.open_ssl_over_tcp_stream).

    The handshake is made with the first send or receive, or with `do_handshake()`.

    Args:
        host: where to connect to; the server must have a certificate for it.
        port: the port.
        https_compatible: True: the end of the connection need not be announced by close_notify, as
        in HTTPS.
        ssl_context: None: ssl.create_default_context().
        happy_eyeballs_delay, options: as of open_tcp_stream.

    Raises:
        As of open_tcp_stream.

    Cancellation: every socket that was opened is closed.
    """
    stream = await open_tcp_stream(
        host, port, happy_eyeballs_delay=happy_eyeballs_delay, options=options
    )
    try:
        if ssl_context is None:
            ssl_context = ssl.create_default_context()
            # Or a connection that was cut would look like one that ended.
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
        port, host, backlog, reuse_port, options: as of open_tcp_listeners.
        ssl_context: with the server's certificate.
        https_compatible: as of open_ssl_over_tcp_stream.

    Cancellation: what was opened is closed.
    """
    listeners = await open_tcp_listeners(
        port, host=host, backlog=backlog, reuse_port=reuse_port, options=options
    )
    return [
        trio.SSLListener(listener, ssl_context, https_compatible=https_compatible)
        for listener in listeners
    ]


async def serve_ssl_over_tcp(
    handler: Callable[[trio.SSLStream[SocketStream]], Awaitable[object]],
    port: int,
    ssl_context: ssl.SSLContext,
    *,
    host: str | bytes | None = None,
    https_compatible: bool = False,
    backlog: int | None = None,
    reuse_port: bool = False,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[trio.SSLListener[SocketStream]]] = trio.TASK_STATUS_IGNORED,
    options: SocketOptions | None = None,
) -> None:
    """Serves TLS connections over TCP, each with a task that runs `handler(stream)`, until it is
    cancelled.

    Args:
        handler: as of serve_tcp. The handshake is made within it, with the first send or receive.
        port, host, backlog, reuse_port, options: as of open_tcp_listeners.
        ssl_context, https_compatible: as of open_ssl_over_tcp_listeners.
        handler_nursery, task_status: as of serve_tcp.

    Cancellation: the listeners are closed.
    """
    listeners = await open_ssl_over_tcp_listeners(
        port,
        ssl_context,
        host=host,
        https_compatible=https_compatible,
        backlog=backlog,
        reuse_port=reuse_port,
        options=options,
    )
    await trio.serve_listeners(
        handler, listeners, handler_nursery=handler_nursery, task_status=task_status
    )
