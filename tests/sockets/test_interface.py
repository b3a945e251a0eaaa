"""The interface of a UringSocket: each method is ours or inherited on purpose, with trio's
signature.

Rules: the lists are written out, so that a method that trio adds needs a decision.
"""

from __future__ import annotations

import inspect
import socket

import pytest
import trio

import trio_uring
import trio_uring.socket

pytestmark = pytest.mark.no_ring

OURS = {
    "accept", "close", "connect", "detach", "dup", "is_readable", "recv", "recv_into", "send",
    "shutdown", "wait_writable",
}  # fmt: skip
# All that wait go through one method, which is ours.
BY_HELPER = {"recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "sendmsg", "sendto"}
# Nothing that waits for the kernel, but `bind`, which does so in a thread.
INHERITED = {
    "bind", "did_shutdown_SHUT_WR", "family", "fileno", "get_inheritable", "getpeername",
    "getsockname", "getsockopt", "listen", "proto", "set_inheritable", "setsockopt",
    "type",
}  # fmt: skip


def defined_by_us(name: str) -> bool:
    return any(
        name in vars(cls)
        for cls in trio_uring.UringSocket.__mro__
        if cls.__module__.startswith("trio_uring")
    )


def test_every_method_is_ours_or_inherited_on_purpose() -> None:
    public = {name for name in vars(trio.socket.SocketType) if not name.startswith("_")}
    assert public == OURS | BY_HELPER | INHERITED
    assert {name for name in public if defined_by_us(name)} == OURS
    assert defined_by_us("_nonblocking_helper")


@pytest.mark.parametrize("name", sorted(OURS - {"is_readable"}))
def test_signatures_are_trios(name: str) -> None:
    """But for `self`, which is by position only in a method in C."""

    def shape(cls: type, follow: bool) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(
            getattr(cls, name), follow_wrapped=follow
        ).parameters.values()
        return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters][1:]

    # trio says that its sendmsg wraps socket.sendmsg, which has no signature to ask for.
    assert shape(trio_uring.UringSocket, True) == shape(trio.socket.SocketType, False)


def test_it_is_a_trio_socket() -> None:
    left, right = trio_uring.socket.socketpair()
    for sock in (left, right):
        assert isinstance(sock, trio.socket.SocketType)
        assert type(sock) is trio_uring.UringSocket
        assert repr(sock).startswith("<trio.socket.socket fd=")
        sock._sock.close()


def test_the_module_mirrors_trios() -> None:
    names = {name for name in vars(trio.socket) if not name.startswith("_")}
    assert names <= set(vars(trio_uring.socket))
    makers = {"socket", "socketpair", "fromfd", "from_stdlib_socket", "fromshare", "TYPE_CHECKING"}
    assert all(
        getattr(trio_uring.socket, name) is getattr(trio.socket, name) for name in names - makers
    )


def test_only_plain_sockets_are_taken() -> None:
    class Special(socket.socket):
        pass

    with Special() as special, pytest.raises(TypeError):
        trio_uring.UringSocket(special)
