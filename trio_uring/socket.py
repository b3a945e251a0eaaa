"""A mirror of `trio.socket`: the same names, with sockets on the ring.

`trio_uring.socket.socket()` makes a `UringSocket`, a real subclass of `trio.socket.SocketType`, in
any trio.run, enabled or not. The constants, the resolution of names and `set_custom_socket_factory`
are trio's own.

Rules of this file: what makes a socket is here; everything else is trio's, re-exported.
"""

from __future__ import annotations

import socket as _stdlib_socket
from typing import TYPE_CHECKING

import trio as _trio
import trio.socket as _trio_socket
from trio.socket import SocketType as SocketType
from trio.socket import getaddrinfo as getaddrinfo
from trio.socket import getnameinfo as getnameinfo
from trio.socket import getprotobyname as getprotobyname
from trio.socket import set_custom_hostname_resolver as set_custom_hostname_resolver
from trio.socket import set_custom_socket_factory as set_custom_socket_factory

from ._sockets.uring_socket import UringSocket as UringSocket
from ._sockets.uring_socket import become_ours as _become_ours

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    def __getattr__(name: str) -> Any: ...  # the constants


# Everything else that trio.socket has on this platform.
globals().update(
    {name: value for name, value in vars(_trio_socket).items() if not name.startswith("_")}
)


def from_stdlib_socket(sock: _stdlib_socket.socket) -> UringSocket:
    """Makes a UringSocket from a plain socket of the standard library, and owns it from then on.

    Raises:
        TypeError: `sock` is something else.
    """
    return UringSocket(sock)


def socket(
    family: _stdlib_socket.AddressFamily | int = _stdlib_socket.AF_INET,
    type: _stdlib_socket.SocketKind | int = _stdlib_socket.SOCK_STREAM,
    proto: int = 0,
    fileno: int | None = None,
) -> UringSocket:
    """Makes a new socket; the arguments are those of socket.socket.

    In a trio.run, a factory that was set with `set_custom_socket_factory` is used, as by trio. If
    it returns a socket of trio's own class, that becomes a UringSocket; a socket of another class
    is returned as it is.

    Args:
        family, type, proto: as for socket.socket.
        fileno: a descriptor, whose family and type the kernel is asked for; no factory is used.
    """
    if _trio.lowlevel.in_trio_run():
        made = _trio_socket.socket(family, type, proto, fileno)
        return _become_ours(made)  # type: ignore[return-value]
    if fileno is not None:
        # Given only the descriptor, Python asks the kernel for the rest.
        return UringSocket(_stdlib_socket.socket(fileno=fileno))
    return UringSocket(_stdlib_socket.socket(family, type, proto))


def fromfd(
    fd: SupportsIndex,
    family: _stdlib_socket.AddressFamily | int = _stdlib_socket.AF_INET,
    type: _stdlib_socket.SocketKind | int = _stdlib_socket.SOCK_STREAM,
    proto: int = 0,
) -> UringSocket:
    """Makes a socket from a duplicate of `fd`, whatever its family and type."""
    return _become_ours(_trio_socket.fromfd(fd, family, type, proto))  # type: ignore[return-value]


def socketpair(
    family: _stdlib_socket.AddressFamily | int | None = None,
    type: _stdlib_socket.SocketKind | int = _stdlib_socket.SOCK_STREAM,
    proto: int = 0,
) -> tuple[UringSocket, UringSocket]:
    """Makes two connected sockets; the arguments are those of socket.socketpair."""
    made: Any = _stdlib_socket.socketpair  # its types are not the same on Windows
    left, right = made(family, type, proto)
    return UringSocket(left), UringSocket(right)
