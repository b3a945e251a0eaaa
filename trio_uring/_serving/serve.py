"""serve_listeners, serve_tcp, serve_unix and serve_ssl_over_tcp: trio's, with limits and a graceful
end.

Rules of this file: names, signatures and errors are those of trio's helpers, and what goes beyond
them is off unless it is asked for. The work is done in `server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .._streams.listeners import open_unix_listeners
from .._streams.tcp import open_tcp_listeners
from .server import Server

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Awaitable, Callable

    from .._options import SocketOptions
    from .._streams.listeners import SocketListener
    from .._streams.streams import SocketStream
    from .shutdown import Shutdown

_Stream = TypeVar("_Stream", bound=trio.abc.AsyncResource)
_Listener = TypeVar("_Listener", bound=trio.abc.Listener[Any])


async def serve_listeners(
    handler: Callable[[_Stream], Awaitable[object]],
    listeners: list[_Listener],
    *,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[_Listener]] = trio.TASK_STATUS_IGNORED,
    max_connections: int | None = None,
    first_byte_timeout: float | None = None,
    idle_timeout: float | None = None,
    shutdown: Shutdown | None = None,
) -> None:
    """Serves the connections of listeners, running `handler(stream)` in a task for each.

    Without the last four arguments, it does what trio.serve_listeners does: it serves until
    cancelled; an exception of a handler ends it, and so does one of a listener, except that when
    descriptors or memory are short (EMFILE, ENFILE, ENOMEM, ENOBUFS) it logs an error and tries
    again after 0.1 s.

    Args:
        handler: called with each connection. The stream is closed when it returns; an exception
            that it raises ends the server.
        listeners: any of trio's kind, owned from now on.
        handler_nursery: where the handlers run; None: in a nursery of this call.
        task_status: for nursery.start, which returns the listeners.
        max_connections: the most connections at a time, of all these listeners; further ones wait
            in the backlog. None: no limit.
        first_byte_timeout: seconds. The handler is called when the first byte is there (with TLS,
            that of the handshake). Connections that sent nothing by then, or ended before, are
            closed. None: the handler is called at once.
        idle_timeout: seconds that a receive or a send may take, unless the handler says otherwise:
            the stream's `receive_timeout` and `send_timeout`. A trio.TooSlowError that the handler
            lets through closes its connection, and nothing else. None: no limit.
        shutdown: when it is started, listeners are closed. A connection whose handler has waited
            for a byte for `shutdown.quiet` seconds has its receiving side shut down: the handler
            sees the end of the stream, as if the client had hung up, and may still send. With TLS,
            that is the end of the stream if https_compatible, and otherwise a
            trio.BrokenResourceError, which now closes its connection, and nothing else. The other
            handlers go on. After `shutdown.grace` seconds, what is left is cancelled. This call
            returns when the last handler has. None: it serves until cancelled.

    Raises:
        ValueError, TypeError: an argument is out of range; or a connection's stream is of a kind
            that has no time limits, or cannot wait for a byte without taking it.

    Cancellation: the listeners are closed; handlers are cancelled if they run in this call's
    nursery.
    """
    server = Server(handler, max_connections, first_byte_timeout, idle_timeout, shutdown)
    await server.serve(listeners, handler_nursery, task_status)


async def serve_tcp(
    handler: Callable[[SocketStream], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    reuse_port: bool = False,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
    options: SocketOptions | None = None,
    max_connections: int | None = None,
    first_byte_timeout: float | None = None,
    idle_timeout: float | None = None,
    shutdown: Shutdown | None = None,
) -> None:
    """Serves TCP connections until cancelled, running `handler(stream)` in a task for each.

    Args:
        handler: called with each connection. The stream is closed when it returns; an exception
            that it raises ends the server, as in trio.serve_tcp.
        port, host, backlog, reuse_port: as in open_tcp_listeners.
        handler_nursery: where the handlers run; None: in a nursery of this call.
        task_status: for nursery.start, which returns the list of listeners.
        options: as in open_tcp_listeners.
        max_connections, first_byte_timeout, idle_timeout, shutdown: limits, and how to end
            gracefully, as in serve_listeners.

    Cancellation: the listeners are closed.
    """
    listeners = await open_tcp_listeners(
        port, host=host, backlog=backlog, reuse_port=reuse_port, options=options
    )
    server = Server(handler, max_connections, first_byte_timeout, idle_timeout, shutdown)
    await server.serve(listeners, handler_nursery, task_status)


async def serve_unix(
    handler: Callable[[SocketStream], Awaitable[object]],
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    mode: int | None = None,
    backlog: int | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
    options: SocketOptions | None = None,
    max_connections: int | None = None,
    first_byte_timeout: float | None = None,
    idle_timeout: float | None = None,
    shutdown: Shutdown | None = None,
) -> None:
    """Serves a Unix socket until cancelled, running `handler(stream)` in a task for each
    connection.

    Args:
        path, mode, backlog, options: as in open_unix_listeners.
        handler, handler_nursery, task_status: as in serve_tcp.
        max_connections, first_byte_timeout, idle_timeout, shutdown: as in serve_listeners.

    Cancellation: the listener is closed and its file removed.
    """
    listeners = await open_unix_listeners(path, mode=mode, backlog=backlog, options=options)
    server = Server(handler, max_connections, first_byte_timeout, idle_timeout, shutdown)
    await server.serve(listeners, handler_nursery, task_status)


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
    max_connections: int | None = None,
    first_byte_timeout: float | None = None,
    idle_timeout: float | None = None,
    shutdown: Shutdown | None = None,
) -> None:
    """Serves TLS over TCP until cancelled, running `handler(stream)` in a task for each connection.

    Args:
        handler: as in serve_tcp. The handshake happens in it, in the first send or receive.
        port, host, backlog, reuse_port, options: as in open_tcp_listeners.
        ssl_context, https_compatible: as in open_ssl_over_tcp_listeners.
        handler_nursery, task_status: as in serve_tcp.
        max_connections, first_byte_timeout, idle_timeout, shutdown: as in serve_listeners.

    Cancellation: the listeners are closed.
    """
    listeners = await open_tcp_listeners(
        port, host=host, backlog=backlog, reuse_port=reuse_port, options=options
    )
    secured = [
        trio.SSLListener(listener, ssl_context, https_compatible=https_compatible)
        for listener in listeners
    ]
    server = Server(handler, max_connections, first_byte_timeout, idle_timeout, shutdown)
    await server.serve(secured, handler_nursery, task_status)
