"""Listeners: accept, with trio's rules for its errors; and those on Unix sockets are opened.

Rules of this file: the socket accepts, and takes a connection only while a task waits for one,
because other processes may be accepting on the same socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket as stdlib_socket
import sys
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from .._descriptors.direction import AF_UNIX
from .._errors import CLOSED_ERRNOS
from .._options import DEFAULT_OPTIONS, SocketOptions, fold_options
from .endpoint import Endpoint, SocketLike, adopt_socket, make_over
from .streams import SocketStream
from .unix import check_name, listen_unix

if TYPE_CHECKING:
    from .unix import SocketFile, SocketPath

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


# -- on a Unix socket


class _UnixListener(SocketListener):
    """A listener that removes its file, if it has one, when it is closed."""

    def __init__(
        self, sock: stdlib_socket.socket, file: SocketFile | None, options: SocketOptions
    ) -> None:
        super().__init__(sock)
        self._to_accepted = options
        self._file = file

    @enable_ki_protection
    def _close(self) -> None:
        if self._file is not None:
            self._file.remove()
        super()._close()


async def open_unix_listeners(
    path: SocketPath,
    *,
    mode: int | None = None,
    backlog: int | None = None,
    options: SocketOptions | None = None,
) -> list[SocketListener]:
    """Opens a listener on a Unix socket.

    A socket file at `path` to which nobody is bound any more is replaced. Of several servers that
    start at the same time, one gets the path. The file is removed when the listener is closed,
    unless another file has taken its place.

    Args:
        path: the path of the socket, at most 107 bytes. One that begins with a zero byte is an
            abstract name, which has no file (Linux only).
        mode: permissions of the file, such as 0o600. Whoever may write to it may connect, and
            nobody else can at any moment. None: what the umask leaves.
        backlog: a shorthand for this field of `options`.
        options: options of the listener and its connections; None: the defaults of SocketOptions.

    Returns:
        A list with one listener.

    Raises:
        OSError: EADDRINUSE: a live server is bound to the path, or a file that is not a socket is
            there, which is never removed. ENAMETOOLONG: the path is too long. EPERM: `mode` is more
            than the umask allows, there is no /proc, and others may change the directory. Other
            numbers as in bind(2).
        ValueError: an empty path or one with a zero byte, an invalid mode, a mode for an abstract
            name, an abstract name where there are none, or a backlog that contradicts the options.
        RuntimeError: this platform has no Unix sockets (Windows).

    Cancellation: a checkpoint comes first; after that it cannot be cancelled.
    """
    name = check_name(path, mode)
    options = fold_options(options, backlog=backlog)
    return [await _in_thread(name, mode, options)]


@enable_ki_protection
async def _in_thread(name: bytes, mode: int | None, options: SocketOptions) -> SocketListener:
    # A file system may block.
    return _UnixListener(*await trio.to_thread.run_sync(listen_unix, name, mode, options), options)
