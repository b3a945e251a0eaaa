"""What every stream and listener is made of: a descriptor, who owns it, and how it closes.

Rules of this file: a stream is one or two directions of a lease, with trio's names. The lease and
its directions know whether the stream is closed and who is using it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket as stdlib_socket
import stat
import sys
import warnings
from typing import TYPE_CHECKING, TypeVar

import trio

from .._descriptors.direction import SHUT_DOWN, Verdict
from .._descriptors.lease import Lease
from .._driver.looking import peer_of
from .._errors import stream_error
from .._options import DEFAULT_OPTIONS
from .._sockets.uring_socket import UringSocket, become_ours

if TYPE_CHECKING:
    from .._descriptors.direction import Direction
    from .._driver.operation import TaskOperation


SocketLike = stdlib_socket.socket | trio.socket.SocketType


class Descriptor:
    """Owns a file descriptor that is not a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(RuntimeError):  # outside of a run nobody waits
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
    """Checks that `sock` is a stream socket, takes it over, and returns it as a trio socket.

    A socket of trio's own class becomes a UringSocket, so that closing it wakes whoever waits on
    the stream; it stays the same object. A socket of another class, made by a custom socket
    factory, stays what it is: only its descriptor is used.
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
    """Like adopt_socket, but also takes a descriptor: a stream socket, pipe, FIFO or character
    device."""
    if not isinstance(source, int) or isinstance(source, bool):
        return adopt_socket(source, what)
    if sys.platform == "win32":
        raise TypeError(f"on Windows, {what} requires a socket, not a descriptor")
    mode = os.fstat(source).st_mode
    if stat.S_ISSOCK(mode):
        sock = stdlib_socket.socket(fileno=source)
        try:
            return adopt_socket(sock, what)
        except BaseException:
            sock.detach()  # refused: it still belongs to the caller
            raise
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise ValueError(
            f"{what} requires a stream socket, a pipe or a FIFO; descriptor {source} is something "
            "else"
        )
    return Descriptor(source)


def lease_of(owner: trio.socket.SocketType | Descriptor) -> Lease:
    """The lease that the owner shares with its streams.

    It is a new one for a descriptor, and for a socket of a custom factory's own class.
    """
    if isinstance(owner, UringSocket):
        return owner.lease
    if isinstance(owner, Descriptor):
        return Lease(owner, owner.close, owner.fileno)
    borrowed = _Borrowed(owner) if owner.fileno() >= 0 else owner
    lease = Lease(borrowed, owner.close, owner.fileno, owner.shutdown)
    lease.sending.fileno = functools.partial(_number_to_send, owner)
    return lease


def _number_to_send(sock: trio.socket.SocketType) -> int:
    """A socket of somebody else's class does not report that it was shut down, so we ask it."""
    number = sock.fileno()
    return SHUT_DOWN if number >= 0 and sock.did_shutdown_SHUT_WR else number


class _Borrowed(stdlib_socket.socket):
    """The socket module's calls on the descriptor of a socket of somebody else's class."""

    __slots__ = ("_lender",)

    def __init__(self, lender: trio.socket.SocketType) -> None:
        super().__init__(lender.family, lender.type, lender.proto, fileno=lender.fileno())
        if sys.implementation.name == "pypy":  # which has just made the descriptor blocking
            self.setblocking(False)
        self._lender = lender  # kept, since it closes the descriptor

    def __del__(self) -> None:
        self.detach()


class Endpoint:
    """A descriptor with an owner, and its two directions."""

    def __init__(
        self,
        owner: trio.socket.SocketType | Descriptor,
        lease: Lease | None = None,
        options: bool = True,
    ) -> None:
        if owner.fileno() < 0:
            raise trio.ClosedResourceError("this socket was already closed")
        self._owner = owner
        self._socket = None if isinstance(owner, Descriptor) else owner
        self._use(lease or lease_of(owner))
        # A socket that already had a stream keeps the options that its user gave it.
        if options and self._socket is not None and lease is None:
            DEFAULT_OPTIONS.apply(self._socket, "connected")

    def _use(self, lease: Lease) -> None:
        self._lease = lease
        self._sending, self._receiving = lease.sending, lease.receiving

    @property
    def socket(self) -> trio.socket.SocketType:
        """The trio socket, for options and addresses.

        Close it through the stream, which may have operations on it.

        Raises:
            AttributeError: this stream's descriptor is not a socket.
        """
        if self._socket is None:
            raise AttributeError("this stream is not on a socket")
        return self._socket

    def _told(self) -> str:
        """What it is called in the note of an error: see _bytes/timed.py."""
        peer = peer_of(self._lease.owner)
        to = f", peer {peer}" if peer else ""
        return f"{type(self).__name__}, descriptor {self._owner.fileno()}{to}"

    async def _again(self, way: Direction, op: TaskOperation, res: int) -> None:
        """After a negative result: returns once the operation is to be repeated.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError: it is not to be repeated.
        """
        verdict = way.verdict(op, res)
        if verdict is Verdict.WAIT:
            await self._wait_ready(way)
        elif verdict is not Verdict.AGAIN:
            raise self._error(way, res)
        way.check_open()

    async def _wait_ready(self, way: Direction) -> None:
        """Waits until a direction that the caller holds is ready, or is interrupted.

        Cancellation: it stops waiting; there is nothing to lose.
        """
        res = await way.wait_ready()
        if res < 0 and way.verdict(None, res) is not Verdict.WAIT:
            raise self._error(way, res)

    async def _settle(self, way: Direction) -> None:
        """Before a call: settles what a destroyed call left in the kernel."""
        await way.settle()
        way.check_open()

    def _error(self, way: Direction, res: int) -> BaseException:
        """The exception for a negative result.

        ECANCELED gets here only if the descriptor was closed under the task.
        """
        if way.closed or res == -errno.ECANCELED:
            return trio.ClosedResourceError(f"another task closed this {self._lease.noun}")
        return stream_error(-res, of_socket=way.is_socket)

    def _close(self) -> None:
        if not self._lease.closed:
            self._lease.check_thread()
            self._lease.close()

    async def aclose(self) -> None:
        """Closes the stream or listener at once, and then executes a checkpoint.

        Tasks blocked on it wake with trio.ClosedResourceError. Closing twice is allowed.

        Cancellation: the stream is closed even if the scope is already cancelled.
        """
        self._close()
        await trio.lowlevel.checkpoint()


_Stream = TypeVar("_Stream", bound=Endpoint)


def make_over(
    cls: type[_Stream],
    owner: trio.socket.SocketType | Descriptor,
    lease: Lease | None = None,
    options: bool = True,
) -> _Stream:
    """Makes a stream over something that this package made or has already checked.

    Args:
        cls: the class of the stream.
        owner, lease: as in Endpoint.
        options: whether the default TCP options have to be set, if it is a TCP socket.
    """
    stream = cls.__new__(cls)
    Endpoint.__init__(stream, owner, lease, options)
    return stream


def lease_under(stream: Endpoint) -> Lease:
    """Returns the lease that a stream of this package is made of."""
    return stream._lease
