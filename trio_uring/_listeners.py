"""Listeners: accept on the ring, by trio's rules for what goes wrong there.

Rules of this file: an accept is in the kernel only while a task waits for the connection. Every result >= 0 is a descriptor:
it becomes a stream or is closed, also when the task is gone.
"""

from __future__ import annotations

import errno
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from ._endpoint import Endpoint, SocketLike, adopt_socket
from ._errors import AGAIN_ERRNOS, CLOSED_ERRNOS
from ._op import Opcode
from ._streams import SocketStream

if TYPE_CHECKING:
    from ._engine import TaskOperation

# As trio's SocketListener: a connection that failed before it was accepted is no concern of the listener's.
_IGNORABLE = frozenset(
    getattr(errno, name)
    for name in (
        "EPERM", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP",
        "ENETUNREACH", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT", "ETIMEDOUT", "ECONNRESET",
    )
    if hasattr(errno, name)  # macOS and Windows have not got them all
)  # fmt: skip


class SocketListener(Endpoint, trio.abc.Listener[SocketStream]):
    """Accepts connections on a listening socket: the ring's counterpart of trio.SocketListener.

    Args:
        sock: a stdlib or trio socket of type SOCK_STREAM that listens. The listener owns it from now on.

    Raises:
        TypeError, ValueError: it is something else.
    """

    _accept_operation: TaskOperation | None = None
    _accepting = False

    def __init__(self, sock: SocketLike) -> None:
        adopted = adopt_socket(sock, "SocketListener")
        if not adopted.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN):
            raise ValueError("SocketListener requires a listening socket")
        Endpoint.__init__(self, adopted)

    async def accept(self) -> SocketStream:
        """Waits for a connection.

        Raises:
            trio.BusyResourceError: another task is accepting on this listener.
            trio.ClosedResourceError: this listener was closed.
            OSError: accept failed, for instance with EMFILE. Connections that failed before they were accepted are
                skipped; trio.serve_listeners logs the errors of capacity and tries again after 0.1 s.

        Cancellation: a connection that arrived meanwhile is returned; none is lost.
        """
        return SocketStream(await self._accept())

    @enable_ki_protection
    async def _accept(self) -> stdlib_socket.socket:
        if self._accepting:
            raise trio.BusyResourceError("another task is currently accepting on this listener")
        try:
            self._check_open()
        except trio.ClosedResourceError:
            await trio.lowlevel.checkpoint()  # as trio's: a loop that accepts from a closed listener does not stop the run
            raise
        self._lease.check_socket(True)
        op = self._accept_operation
        if op is None:
            op = self._accept_operation = self._operation(Opcode.ACCEPT)
            op.flags = stdlib_socket.SOCK_CLOEXEC | stdlib_socket.SOCK_NONBLOCK
            op.dispose = _close_accepted
        self._accepting = True
        try:
            while True:
                op.res = -1
                res = await op.driver.perform(op)
                if res >= 0:
                    op.res = -1
                    # With family, type and protocol given, Python asks the kernel for nothing.
                    return stdlib_socket.socket(self.socket.family, stdlib_socket.SOCK_STREAM, self.socket.proto, res)
                if self._closed or -res in CLOSED_ERRNOS or res == -errno.ECANCELED:
                    raise trio.ClosedResourceError("this listener was closed")
                if -res in AGAIN_ERRNOS:  # kernels before 5.12 or so say EAGAIN for an O_NONBLOCK listener
                    await self._poll(select.POLLIN)
                    self._check_open()
                elif -res not in _IGNORABLE:
                    raise OSError(-res, os.strerror(-res))
        finally:
            self._accepting = False
            if op.state.in_kernel:  # this coroutine was destroyed: the ring disposes of what still comes
                self._accept_operation = None
            elif op.res >= 0:  # it was done, and the coroutine destroyed before it resumed
                os.close(op.res)
                op.res = -1


def _close_accepted(res: int) -> None:
    if res >= 0:
        os.close(res)
