"""Listeners: accept by trio's rules for what goes wrong there.

Rules of this file: the socket accepts, and takes a connection only for a task that is there to have
it: other processes may accept on the same socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket as stdlib_socket
import sys

import trio

from .._errors import CLOSED_ERRNOS
from .._options import DEFAULT_OPTIONS, SocketOptions
from .endpoint import Endpoint, SocketLike, adopt_socket, make_over
from .streams import SocketStream

# As trio's SocketListener: a connection that failed before it was accepted is no concern of the
# listener's.
_IGNORABLE = frozenset(
    getattr(errno, name)
    for name in (
        "EPERM", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET",
        "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT",
        "EPROTONOSUPPORT", "ETIMEDOUT", "ECONNRESET",
    )
    if hasattr(errno, name)  # macOS and Windows have not got them all
)  # fmt: skip


class SocketListener(Endpoint, trio.abc.Listener[SocketStream]):
    """Accepts connections on a listening socket: the ring's counterpart of trio.SocketListener.

    Args:
        sock: a stdlib or trio socket of type SOCK_STREAM that listens. The listener owns it from
            now on.

    Raises:
        TypeError, ValueError: it is something else.
    """

    # What an accepted socket has to be given; None: it has all of it from the listener.
    _to_accepted: SocketOptions | None = None if sys.platform == "linux" else DEFAULT_OPTIONS

    def __init__(self, sock: SocketLike) -> None:
        adopted = adopt_socket(sock, "SocketListener")
        with contextlib.suppress(OSError):  # macOS does not tell: as trio, we trust the user there
            if not adopted.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN):
                raise ValueError("SocketListener requires a listening socket")
        Endpoint.__init__(self, adopted)

    async def accept(self) -> SocketStream:
        """Waits for a connection.

        Raises:
            trio.BusyResourceError: another task waits for one on this listener.
            trio.ClosedResourceError: this listener was closed.
            OSError: accept failed, for instance with EMFILE. Connections that failed before they
                were accepted are skipped; trio.serve_listeners logs the errors of capacity and
                tries again after 0.1 s.

        Cancellation: a connection that arrived meanwhile is returned, or left to the next accept.
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
    """The listener over a socket of this package that listens, with these options set."""
    listener = make_over(SocketListener, adopt_socket(sock, "SocketListener"), options=False)
    if sys.platform != "linux" or sock.family == stdlib_socket.AF_UNIX:
        listener._to_accepted = options
    return listener


def _set_options(sock: trio.socket.SocketType, options: SocketOptions) -> None:
    try:
        options.apply(sock, "connected")
    except BaseException:
        sock.close()
        raise
