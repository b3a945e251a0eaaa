"""What the calls of a UringSocket are made of: its lease, one call per direction, waits.

Rules of this file: a call borrows its direction (`Direction.lend`), only until its operation is
done. The direction deals with what destroyed calls leave behind.
"""

from __future__ import annotations

import errno
import functools
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.views import release_view
from .._descriptors.direction import INTO, Direction, Verdict, busy
from .._descriptors.lease import Lease
from .._driver.run import current_driver
from .._ring.op import Opcode
from .._trio import HAS_NONBLOCKING_HELPER, SocketType_

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from .._driver.operation import TaskOperation

BYTES_MAX = 2**30  # bytes of one operation, whose length has 32 bits

# Bytes: how much of what destroyed receives got is offered to one receive. A Unix socket takes as
# much at once.
_KEPT_MAX = 2**16

# With these flags, a receive does not get the next bytes of the stream.
_ASIDE = getattr(stdlib_socket, "MSG_OOB", 0) | getattr(stdlib_socket, "MSG_ERRQUEUE", 0)

_FAMILY_NAMES = ("AF_INET", "AF_INET6", "AF_UNIX")
_STREAM_FAMILIES = frozenset(getattr(stdlib_socket, name, None) for name in _FAMILY_NAMES)

_T = TypeVar("_T")


class SocketOperations(SocketType_):
    """A trio socket with a lease on its descriptor."""

    _own_lease: Lease | None = None

    @property
    def lease(self) -> Lease:
        """The lease on this socket's descriptor, for the socket itself and the streams on it."""
        lease = self._own_lease
        if lease is None:  # not made in __init__: sockets that trio has initialised become ours
            sock = self._sock
            stream = sock.type == stdlib_socket.SOCK_STREAM and sock.family in _STREAM_FAMILIES
            lease = Lease(sock, functools.partial(_close, sock), sock.fileno, sock.shutdown)
            lends = stream and HAS_NONBLOCKING_HELPER
            lease.sending.lends = lease.receiving.lends = lends
            lease.sending.ended = self.did_shutdown_SHUT_WR
            self._own_lease = lease
        return lease

    def _lease_on_ring(self) -> Lease | None:
        """The lease; None: do everything trio's way.

        That is so if there is no ring, or if some other object is in the place of the plain socket.
        """
        sock = self._sock
        if type(sock) is not stdlib_socket.socket or not current_driver().engine.completes:
            return None
        lease = self._own_lease or self.lease
        return lease if lease.owner is sock else None

    # -- trio's way: make the call, wait for the direction

    def _call(
        self,
        way: Direction,
        fn: Callable[..., _T],
        args: Any,
        kwargs: Any,
    ) -> _T:
        """Calls `fn` on the plain socket, unless another task's operation is moving bytes."""
        if way.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        waiter = way.waiter
        moves = waiter is not None and waiter.opcode != Opcode.POLL_ADD and waiter.in_use
        if way.held or moves:
            raise busy()
        if way.kept is not None and not _flags_of(fn, args, kwargs) & _ASIDE:
            return _call_on_kept(way, fn, args, kwargs)
        return fn(self._sock, *args, **kwargs)

    @enable_ki_protection
    async def _wait(self, way: Direction) -> None:
        """Takes the direction, and waits until it is ready. Always a checkpoint.

        Raises:
            trio.BusyResourceError: another task waits for the direction.
            trio.ClosedResourceError: the socket was closed meanwhile.
        """
        if way.held or (way.waiter is not None and way.waiter.in_use):
            await trio.lowlevel.checkpoint()
            raise busy()
        op = way.lend_poll()
        res = await way.wait_ready(op)
        if res < 0:
            self._check_again(way, op, res)

    # -- by completion

    def _lend(self, kind: int, receiving: bool) -> tuple[Direction, TaskOperation] | None:
        """A direction, and its operation that moves bytes. None: the call goes trio's way."""
        sock, lease = self._sock, self._own_lease
        if lease is None:
            if type(sock) is not stdlib_socket.socket:
                return None
            lease = self.lease
        if lease.owner is not sock:
            return None
        way = lease.receiving if receiving else lease.sending
        op = way.lend(kind)
        return None if op is None else (way, op)

    @enable_ki_protection
    async def _complete(self, kind: int, data: bytes | memoryview) -> int | None:
        """Sends `data` or receives into it. How many bytes; None: none, call trio's way."""
        view = data if isinstance(data, memoryview) else None
        lent = self._lend(kind, kind == INTO)
        if lent is None:
            if view is not None:
                release_view(view)
            return None
        way, op = lent
        try:
            op.buffer, op.length = data, min(len(data), BYTES_MAX)
            op.memory = view
            res: int = await op.engine.perform(op)
            if res >= 0:
                return res
            self._check_again(way, op, res)
            return None
        finally:
            if op.owed:
                way.leave(op)
            elif view is not None:
                op.memory = None
                release_view(view)

    def _check_again(self, way: Direction, op: TaskOperation, res: int) -> None:
        """Handles a negative result: returns if the call is to be made again.

        Raises:
            trio.ClosedResourceError: the socket was closed meanwhile.
            OSError: the operation failed.
        """
        verdict = way.verdict(op, res)
        if verdict is Verdict.CLOSED or self._sock.fileno() < 0:
            raise trio.ClosedResourceError("another task closed this fd")
        if verdict is Verdict.ERROR:
            raise OSError(-res, os.strerror(-res))


async def at_once(fn: Callable[..., _T], *args: Any) -> _T:
    """Calls `fn` as trio does: a checkpoint, unless it raises BlockingIOError."""
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        result = fn(*args)
    except BlockingIOError:
        raise
    except BaseException:
        await trio.lowlevel.cancel_shielded_checkpoint()
        raise
    await trio.lowlevel.cancel_shielded_checkpoint()
    return result


def _call_on_kept(way: Direction, fn: Callable[..., _T], args: Any, kwargs: Any) -> _T:
    """Makes a receive that returns what destroyed receives got.

    The call is made on a temporary socket that holds only these bytes, so that every argument keeps
    its meaning.
    """
    there, here = stdlib_socket.socketpair()
    with there, here:
        here.setblocking(False)
        assert way.kept is not None
        put = there.send(way.kept.peek(_KEPT_MAX))
        result = fn(here, *args, **kwargs)
        there.shutdown(stdlib_socket.SHUT_WR)
        taken = put - len(here.recv(put))
        if taken:
            way.take_kept(taken)
        return result


def _flags_of(fn: Callable[..., object], args: Any, kwargs: Any) -> int:
    """The argument `flags` of a receive; it is the last one."""
    before = 1 if fn.__name__ in ("recv", "recvfrom") else 2
    flags = kwargs.get("flags", 0) or next(iter(args[before:]), 0)
    return flags if isinstance(flags, int) else 0


def view_of(buffer: Buffer, count: int = 0, *, writable: bool = False) -> memoryview | None:
    """Exports the first `count` bytes of a caller's buffer; 0: all of it.

    None: the buffer is empty, or the call has to go trio's way.
    """
    try:
        with memoryview(buffer) as view:
            usable = view.nbytes and view.c_contiguous and not (writable and view.readonly)
            if not usable or type(count) is not int or not 0 <= count <= view.nbytes:
                return None
            with view.cast("B") as flat:
                return flat[: count or None]
    except (TypeError, ValueError):  # not a buffer, or its format cannot be cast
        return None


def _close(sock: stdlib_socket.socket) -> None:
    try:
        trio.lowlevel.notify_closing(sock)
    except RuntimeError:  # not in a run, where nobody waits
        pass
    finally:
        sock.close()
