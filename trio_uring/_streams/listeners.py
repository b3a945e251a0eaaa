"""Listeners: accept, with trio's rules for its errors.

Rules of this file: the socket accepts, and takes a connection only while a task waits for one,
because other processes may be accepting on the same socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket as stdlib_socket
import sys

import trio

from .._descriptors.direction import AF_UNIX
from .._errors import CLOSED_ERRNOS
from .._options import DEFAULT_OPTIONS, SocketOptions
from .endpoint import Endpoint, SocketLike, adopt_socket, make_over
from .streams import SocketStream

NO_UNIX_SOCKETS = "Unix sockets are not supported on this platform"  # as trio says it

# As in trio's SocketListener: connections that failed before they were accepted are skipped.
_IGNORABLE = frozenset(
    getattr(errno, name)
    for name in (
        "EPERM", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET",
        "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT",
        "EPROTONOSUPPORT", "ETIMEDOUT", "ECONNRESET",
    )
    if hasattr(errno, name)  # macOS and Windows lack some
)  # fmt: skip


class SocketListener(Endpoint, trio.abc.Listener[SocketStream]):
    """Accepts connections on a listening socket: the ring's counterpart of trio.SocketListener.

    Args:
        sock: a listening stdlib or trio socket of type SOCK_STREAM. The listener owns it from now
            on.

    Raises:
        TypeError, ValueError: `sock` is something else.
    """

    # Options to set on an accepted socket; None: it inherits all of them from the listener.
    _to_accepted: SocketOptions | None = None if sys.platform == "linux" else DEFAULT_OPTIONS

    def __init__(self, sock: SocketLike) -> None:
        adopted = adopt_socket(sock, "SocketListener")
        with contextlib.suppress(OSError):  # macOS cannot tell: like trio, we trust the user
            if not adopted.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN):
                raise ValueError("SocketListener requires a listening socket")
        Endpoint.__init__(self, adopted)

    async def accept(self) -> SocketStream:
        """Waits for a connection.

        Raises:
            trio.BusyResourceError: another task is waiting in accept on this listener.
            trio.ClosedResourceError: this listener was closed.
            OSError: accept failed, for instance with EMFILE. Connections that failed before they
                were accepted are skipped; trio.serve_listeners logs errors of capacity and tries
                again after 0.1 s.

        Cancellation: a connection that arrives meanwhile is returned, or left for the next accept.
        """
        while True:
            try:
                sock, _ = await self.socket.accept()
            except OSError as exc:
                if exc.errno in CLOSED_ERRNOS:
                    raise trio.ClosedResourceError("this listener was closed") from None
                if exc.errno not in _IGNORABLE:
                    raise
            else:
                adopted = adopt_socket(sock, "SocketStream")
                if self._to_accepted is not None:
                    _set_options(adopted, self._to_accepted)
                return make_over(SocketStream, adopted, options=False)


def listener_over(sock: SocketLike, options: SocketOptions) -> SocketListener:
    """Makes a listener over a listening socket of this package that has these options set."""
    listener = make_over(SocketListener, adopt_socket(sock, "SocketListener"), options=False)
    if sys.platform != "linux" or sock.family == AF_UNIX:
        listener._to_accepted = options
    return listener


def _set_options(sock: trio.socket.SocketType, options: SocketOptions) -> None:
    try:
        options.apply(sock, "connected")
    except BaseException:
        sock.close()
        raise
