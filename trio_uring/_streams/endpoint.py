"""What every stream and listener is made of: a descriptor, who owns it, and how it closes.

Rules of this file: it knows no direction. The descriptor is closed once, by the owner, and through
the driver, which takes back or cancels what is using it first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import stat
import warnings
from typing import TYPE_CHECKING

import trio

from .._descriptors.lease import Lease
from .._errors import AGAIN_ERRNOS, stream_error
from .._ring.op import Opcode
from .._sockets.uring_socket import UringSocket, become_ours

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from .._driver.engine import TaskOperation


# Bytes that a TCP socket may hold unsent before it stops being writable. trio sets 16 KiB, which
# wakes a bulk sender for every few packets; measured in docs/design.md.
NOTSENT_LOWAT = 2**20

_INTERNET = (stdlib_socket.AF_INET, stdlib_socket.AF_INET6)
_TCP = (0, stdlib_socket.IPPROTO_TCP, 262)  # 0: as the socket module makes them; 262: IPPROTO_MPTCP

SocketLike = stdlib_socket.socket | trio.socket.SocketType


class Descriptor:
    """Owns a file descriptor that is not a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(RuntimeError):  # not in a run, where nobody waits
                trio.lowlevel.notify_closing(self._fd)
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            try:
                warnings.warn(
                    f"unclosed stream on descriptor {self._fd}",
                    ResourceWarning,
                    stacklevel=2,
                    source=self,
                )
            finally:
                fd, self._fd = self._fd, -1
                os.close(fd)


def adopt_socket(sock: object, what: str) -> trio.socket.SocketType:
    """Checks that `sock` is a stream socket, ours from now on, and returns it as a trio socket.

    One of trio's own class becomes an UringSocket, so that closing it wakes whoever waits on the
    stream; it stays the same object. One of another class, which a custom socket factory has made,
    stays what it is: only its descriptor is used.
    """
    if isinstance(sock, stdlib_socket.socket):
        if type(sock) is not stdlib_socket.socket:
            raise TypeError(
                f"{what} requires a plain socket.socket or a trio socket, not {type(sock).__name__}"
            )
    elif not isinstance(sock, trio.socket.SocketType):
        raise TypeError(f"{what} requires a stdlib or a trio socket, not {sock!r}")
    if sock.type != stdlib_socket.SOCK_STREAM:
        raise ValueError(f"{what} requires a SOCK_STREAM socket")
    return UringSocket(sock) if isinstance(sock, stdlib_socket.socket) else become_ours(sock)


def adopt(source: object, what: str) -> trio.socket.SocketType | Descriptor:
    """As adopt_socket, and takes a descriptor too: of a stream socket, a pipe, a FIFO or a
    character device."""
    if not isinstance(source, int) or isinstance(source, bool):
        return adopt_socket(source, what)
    mode = os.fstat(source).st_mode
    if stat.S_ISSOCK(mode):
        sock = stdlib_socket.socket(fileno=source)
        try:
            return adopt_socket(sock, what)
        except BaseException:
            sock.detach()  # refused: it is the caller's still
            raise
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise ValueError(
            f"{what} requires a stream socket, a pipe or a FIFO; descriptor {source} is something "
            "else"
        )
    return Descriptor(source)


def lease_of(owner: trio.socket.SocketType | Descriptor) -> Lease:
    """The lease that the owner shares with its streams.

    A new one for a descriptor, and for a socket of a custom factory's own class.
    """
    if isinstance(owner, UringSocket):
        return owner.lease
    if isinstance(owner, Descriptor):
        return Lease(owner, owner.close)
    return Lease(_Borrowed(owner) if owner.fileno() >= 0 else owner, owner.close, owner.shutdown)


class _Borrowed(stdlib_socket.socket):
    """The socket module's calls on the descriptor of a socket of somebody else's class."""

    __slots__ = ("_lender",)

    def __init__(self, lender: trio.socket.SocketType) -> None:
        super().__init__(lender.family, lender.type, lender.proto, fileno=lender.fileno())
        self._lender = lender  # which closes it

    def __del__(self) -> None:
        self.detach()


def _set_options(sock: trio.socket.SocketType) -> None:
    """Those that every TCP socket of ours has."""
    if sock.proto in _TCP and sock.type == stdlib_socket.SOCK_STREAM and sock.family in _INTERNET:
        level, lowat = stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NOTSENT_LOWAT
        with contextlib.suppress(OSError):  # macOS refuses them once the peer has hung up
            sock.setsockopt(level, stdlib_socket.TCP_NODELAY, 1)
            sock.setsockopt(level, lowat, NOTSENT_LOWAT)


class Endpoint:
    """A descriptor with an owner, and the operations that use it."""

    def __init__(
        self,
        owner: trio.socket.SocketType | Descriptor,
        source: object = None,
        lease: Lease | None = None,
        options: bool = True,
    ) -> None:
        self._owner = owner
        # Asked before every operation: the user may have closed `.socket` behind our back.
        # The stdlib socket within says the same in a third of the time.
        self._fileno: Callable[[], int] = (
            source.fileno if isinstance(source, stdlib_socket.socket) else owner.fileno
        )
        self._fd = self._fileno()
        self._socket = None if isinstance(owner, Descriptor) else owner
        self._is_socket = self._socket is not None
        if self._fd < 0:
            raise trio.ClosedResourceError("this socket was already closed")
        self._closed = False
        self._lease = lease or lease_of(owner)
        self._operations = self._lease.operations
        # A socket that had a stream has the options that its user left it with.
        if options and self._socket is not None and lease is None:
            _set_options(self._socket)

    @classmethod
    def _over(
        cls,
        owner: trio.socket.SocketType | Descriptor,
        lease: Lease | None = None,
        options: bool = True,
    ) -> Self:
        """A stream over what this package made or checked itself.

        Args:
            owner, lease: as of __init__.
            options: those of TCP have to be set, if it is such a socket.
        """
        self = cls.__new__(cls)
        Endpoint.__init__(self, owner, lease=lease, options=options)
        return self

    @property
    def socket(self) -> trio.socket.SocketType:
        """The trio socket, for options and addresses. Close it through the stream, which may have
        operations on it.

        Raises:
            AttributeError: this stream's descriptor is not a socket.
        """
        if self._socket is None:
            raise AttributeError("this stream is not on a socket")
        return self._socket

    def _operation(self, opcode: int) -> TaskOperation:
        return self._lease.operation(opcode, self._fd)

    def _left_behind(self, *ops: TaskOperation | None) -> TaskOperation | None:
        """At the end of a call: the operation that is not over, because the call's coroutine was
        destroyed (coro.close())."""
        for op in ops:
            if op is not None and op.task is not None:
                op.driver.abandon(op)
            if op is not None and op.state.in_kernel:
                return op
        return None

    def _check_open(self) -> None:
        if self._closed or self._fileno() != self._fd:
            raise trio.ClosedResourceError("this stream was already closed")

    def _error(self, res: int) -> BaseException:
        """The exception for a negative result. ECANCELED reaches us only when the descriptor was
        closed under the task."""
        if self._closed or res == -errno.ECANCELED:
            return trio.ClosedResourceError("another task closed this stream")
        return stream_error(-res, of_socket=self._is_socket)

    async def _poll(self, events: int) -> None:
        """Waits for poll(2) events, or an interruption. Cancellation: nothing is lost, there is
        nothing to lose."""
        op = self._operation(Opcode.POLL_ADD)
        op.flags = events
        try:
            res = await op.driver.wait_ready(op)
        finally:
            self._operations.remove(op)
        if res < 0 and -res not in AGAIN_ERRNOS:
            raise self._error(res)

    def _close(self) -> None:
        if not self._closed:
            self._lease.check_thread()
            self._closed = True
            self._lease.close()

    async def aclose(self) -> None:
        """Closes the stream at once, and then executes a checkpoint.

        Tasks blocked on it wake with trio.ClosedResourceError. Closing twice is allowed.

        Cancellation: it is closed even if the scope is already cancelled.
        """
        self._close()
        await trio.lowlevel.checkpoint()
