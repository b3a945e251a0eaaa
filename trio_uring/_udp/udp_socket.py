"""UDP sockets: datagrams, many at a time.

Rules of this file: opening, naming and closing a socket; sending and receiving have their own
files. The socket is a UringSocket, so resolving, binding and connecting are as in trio.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
import sys
from typing import TYPE_CHECKING, Any, overload

import trio

from .._errors import CLOSED_ERRNOS
from .._options import SocketOptions, fold_options
from .._sockets.uring_socket import UringSocket, become_ours
from .._streams.endpoint import SocketLike, lease_of
from .._trio import plain_socket
from .messages import SEGMENTED_MAX, SOL_UDP, UDP_GRO, UDP_SEGMENT
from .receive import UDPReceive
from .send import UDPSend

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .._descriptors.direction import Direction

if sys.version_info < (3, 11):
    # a dependency of trio's
    from exceptiongroup import ExceptionGroup  # pyright: ignore[reportMissingImports]

_FAMILIES = (stdlib_socket.AF_INET, stdlib_socket.AF_INET6)


class UDPSocket(UDPSend, UDPReceive, trio.abc.AsyncResource):
    """A UDP socket over IPv4 or IPv6. One task may send while another receives.

    Args:
        sock: a stdlib or trio socket of type SOCK_DGRAM, bound or connected or neither. The
            UDPSocket owns it from now on. A socket of trio's own class becomes a UringSocket, and
            stays the same object.
        gro: let the kernel join datagrams as they arrive (UDP_GRO, Linux 5.0), and split them here,
            which costs much less for each. Whoever receives from `.socket` directly gets them
            joined.

    Raises:
        TypeError, ValueError: `sock` is something else.
        trio.ClosedResourceError: `sock` was closed.

    What is not received waits in the socket's buffer (SO_RCVBUF); the kernel drops what does not
    fit there, as always with UDP. A datagram is sent and received by the socket module's own call;
    where that would block, the task waits on the ring.
    """

    def __init__(self, sock: SocketLike, *, gro: bool = True) -> None:
        owner = _adopt(sock)
        lease = lease_of(owner)
        lease.noun = "socket"
        super().__init__(owner, lease)  # with a lease, no TCP options are set
        self._family = int(self.socket.family)
        self._plain = plain_socket(self._owner)
        if sys.platform == "linux":  # elsewhere these numbers may mean something else
            with contextlib.suppress(OSError):  # before 4.18, a run would be sent as one datagram
                self.socket.getsockopt(SOL_UDP, UDP_SEGMENT)
                self._segment_max = SEGMENTED_MAX
            with contextlib.suppress(OSError):
                self.socket.setsockopt(SOL_UDP, UDP_GRO, int(gro))
        self._look_at_options()

    def getsockname(self) -> Any:
        """The local address, as in socket.socket."""
        return self.socket.getsockname()

    def getpeername(self) -> Any:
        """The address that the socket is connected to. Raises OSError if it is not connected."""
        return self.socket.getpeername()

    @overload
    def getsockopt(self, level: int, option: int) -> int: ...
    @overload
    def getsockopt(self, level: int, option: int, length: int) -> bytes: ...
    def getsockopt(self, level: int, option: int, length: int = 0) -> int | bytes:
        """As in socket.socket."""
        return (
            self.socket.getsockopt(level, option, length)
            if length
            else self.socket.getsockopt(level, option)
        )

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """As in socket.socket."""
        self.socket.setsockopt(level, option, value)
        self._look_at_options()

    def _look_at_options(self) -> None:
        self._limits.clear()  # runs that were refused may be taken now
        self._joins = False
        if sys.platform != "linux":
            return
        with contextlib.suppress(OSError):  # a kernel before 5.0 joins nothing
            self._joins = bool(self.socket.getsockopt(SOL_UDP, UDP_GRO))

    def _error(self, way: Direction, res: int) -> BaseException:
        if way.closed or res == -errno.ECANCELED or -res in CLOSED_ERRNOS:
            return trio.ClosedResourceError("another task closed this socket")
        return OSError(-res, os.strerror(-res))


def _adopt(sock: object) -> trio.socket.SocketType:
    if isinstance(sock, stdlib_socket.socket):
        if type(sock) is not stdlib_socket.socket:
            raise TypeError(
                "UDPSocket requires a plain socket.socket or a trio socket, not "
                f"{type(sock).__name__}"
            )
    elif not isinstance(sock, trio.socket.SocketType):
        raise TypeError(f"UDPSocket requires a stdlib or a trio socket, not {sock!r}")
    if sock.type != stdlib_socket.SOCK_DGRAM or sock.family not in _FAMILIES:
        raise ValueError("UDPSocket requires a SOCK_DGRAM socket of AF_INET or AF_INET6")
    if isinstance(sock, stdlib_socket.socket):
        return UringSocket(sock)
    if not isinstance(plain_socket(sock), stdlib_socket.socket):  # such as FakeNet's
        raise TypeError(f"UDPSocket requires a socket of the system's, not a {type(sock).__name__}")
    return become_ours(sock)  # so that closing the socket wakes whoever waits


async def open_udp_socket(
    *,
    local_address: tuple[str | None, int] | None = None,
    remote_address: tuple[str, int] | None = None,
    family: int = stdlib_socket.AF_UNSPEC,
    reuse_port: bool = False,
    broadcast: bool = False,
    gro: bool = True,
    options: SocketOptions | None = None,
) -> UDPSocket:
    """Opens a UDP socket.

    Args:
        local_address: (host, port) to bind to. A host of None is the wildcard address; port 0 lets
            the kernel choose. None: the kernel chooses both when something is sent.
        remote_address: (host, port) to connect to. Sends then need no address, and only datagrams
            from there are received.
        family: socket.AF_INET or AF_INET6. AF_UNSPEC: the family of the addresses, or AF_INET if
            there are none.
        reuse_port, broadcast: shorthands for these fields of `options`.
        gro: as in UDPSocket.
        options: the socket's options; None: the defaults of SocketOptions.

    A host may be a name. Its addresses are tried in order, and the first that can be bound and
    connected is taken.

    Raises:
        OSError: no address could be bound and connected, and the cause is an exception group with
            the error of each; or an option is not available, see SocketOptions.apply.
        ValueError: `family` is another one.

    Cancellation: the socket is closed.
    """
    if family not in (stdlib_socket.AF_UNSPEC, *_FAMILIES):
        raise ValueError(f"family must be AF_INET, AF_INET6 or AF_UNSPEC, not {family!r}")
    options = fold_options(options, reuse_port=reuse_port, broadcast=broadcast)
    errors: list[Exception] = []
    for family_, local, remote in await _candidates(family, local_address, remote_address):
        sock = trio.socket.socket(family_, stdlib_socket.SOCK_DGRAM)  # a custom factory may make it
        try:
            _adopt(sock)
            options.apply(sock, "datagram")
            if local is not None:
                await sock.bind(local)
            if remote is not None:
                await sock.connect(remote)
            return UDPSocket(sock, gro=gro)
        except OSError as exc:
            sock.close()
            errors.append(exc)
        except BaseException:
            sock.close()
            raise
    message = f"no UDP socket from {local_address} to {remote_address} could be opened"
    if not errors:
        raise OSError(f"{message}: they have no address family in common")
    first: Any = errors[0]
    raise OSError(first.errno, f"{message}: {first}") from ExceptionGroup(message, errors)


async def _candidates(family: int, local: Any, remote: Any) -> list[tuple[int, Any, Any]]:
    """The family, local address and remote address of each socket to try, in order."""
    locals_ = await _resolve(local, family, stdlib_socket.AI_PASSIVE)
    remotes = await _resolve(remote, family, 0)
    if local is None and remote is None:
        return [(family or stdlib_socket.AF_INET, None, None)]
    if remote is None:
        return [(family_, address, None) for family_, address in locals_]
    if local is None:
        return [(family_, None, address) for family_, address in remotes]
    return [
        (family_, bound, address)
        for family_, address in remotes
        for other, bound in locals_
        if other == family_
    ]


async def _resolve(address: Any, family: int, flags: int) -> list[tuple[int, Any]]:
    if address is None:
        await trio.lowlevel.checkpoint()
        return []
    host, port = address
    found = await trio.socket.getaddrinfo(
        host or None, port, family, stdlib_socket.SOCK_DGRAM, 0, flags
    )
    return [(entry[0], entry[4]) for entry in found]
