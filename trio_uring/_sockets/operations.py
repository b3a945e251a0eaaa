"""What the calls of a UringSocket are made of: its operations, the rule of one a direction, waits.

Rules of this file:

- An operation belongs to a call from `_take` or `_wait` to `_end`, and is in the lease meanwhile,
  so that closing the socket finds it. A direction is free as soon as its completion is reaped,
  whenever the task resumes.
- What a destroyed call leaves is disposed of once; its bytes are kept for the next receive.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket as stdlib_socket
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection, wait_task_rescheduled

from .._bytes.views import release_views
from .._descriptors.lease import Lease, busy, in_use
from .._descriptors.provided import BufferChoice
from .._driver.run import current_driver
from .._errors import AGAIN_ERRNOS
from .._ring.op import NO_GROUP, Opcode
from .._trio import HAS_NONBLOCKING_HELPER, SocketType_

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from .._driver.engine import TaskOperation

BYTES_MAX = 2**30  # asked for in one operation: its length has 32 bits

# What destroyed calls got and one receive is shown of it; a Unix socket takes as much at once.
_KEPT_MAX = 2**16  # bytes

# The names under which a socket keeps operations to use them again.
RECV, SEND = int(Opcode.RECV), int(Opcode.SEND)
INTO = -RECV  # a RECV into the caller's buffer
_IN, _OUT = int(select.POLLIN), int(select.POLLOUT)

# A send that would block must not: the kernel would poll for room, and such a poll spins where the
# peer has half-closed.
_SEND_FLAGS = getattr(stdlib_socket, "MSG_NOSIGNAL", 0) | getattr(stdlib_socket, "MSG_DONTWAIT", 0)

# With these a receive does not get what is next in the stream.
_ASIDE = getattr(stdlib_socket, "MSG_OOB", 0) | getattr(stdlib_socket, "MSG_ERRQUEUE", 0)

_FAMILY_NAMES = ("AF_INET", "AF_INET6", "AF_UNIX")
_STREAM_FAMILIES = frozenset(getattr(stdlib_socket, name, None) for name in _FAMILY_NAMES)

_T = TypeVar("_T")


class SocketOperations(BufferChoice, SocketType_):
    """A trio socket with a lease on its descriptor."""

    _own_lease: Lease | None = None
    _spare: dict[int, TaskOperation]  # operations to use again, by the names above
    _by_completion: bool  # receives and sends of bytes

    @property
    def lease(self) -> Lease:
        """The operations on this socket's descriptor: its own, and those of a stream on it."""
        lease = self._own_lease
        if lease is None:  # not in __init__: sockets that trio has initialised become ours
            sock = self._sock
            self._spare = {}
            stream = sock.type == stdlib_socket.SOCK_STREAM and sock.family in _STREAM_FAMILIES
            self._by_completion = stream and HAS_NONBLOCKING_HELPER
            lease = Lease(sock, functools.partial(_close, sock), sock.shutdown)
            self._own_lease = lease
        return lease

    def _lease_on_ring(self) -> Lease | None:
        """None: all is trio's affair. There is no ring, or something is in the socket's place."""
        sock = self._sock
        if type(sock) is not stdlib_socket.socket or not _completes():
            return None
        lease = self._own_lease or self.lease
        return lease if lease.owner is sock else None

    # -- trio's way: a call, and a wait for the direction

    def _call(
        self,
        lease: Lease,
        reading: bool,
        fn: Callable[..., _T],
        args: Any,
        kwargs: Any,
    ) -> _T:
        """Calls `fn` on the plain socket, unless another task's operation is moving bytes."""
        if lease.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        holder = lease.reading if reading else lease.writing
        if holder is not None and holder.opcode != Opcode.POLL_ADD and in_use(holder):
            raise busy()
        if lease.operations or lease.copying:
            lease.check_streams(reading)
        if reading and lease.kept and not _flags_of(fn, args, kwargs) & _ASIDE:
            return _call_on_kept(lease, fn, args, kwargs)
        return fn(self._sock, *args, **kwargs)

    @enable_ki_protection
    async def _wait(self, lease: Lease, reading: bool) -> None:
        """Takes the direction, and waits until it is ready. A checkpoint, always.

        Raises:
            trio.BusyResourceError: another task waits for the direction.
            trio.ClosedResourceError: the socket was closed meanwhile.
        """
        holder, events = (lease.reading, _IN) if reading else (lease.writing, _OUT)
        if (holder is not None and in_use(holder)) or lease.streams_use(reading):
            await trio.lowlevel.checkpoint()
            raise busy()
        op = self._spare.pop(events, None)
        if op is None or not self._is_fit(op):
            op = lease.direct_operation(Opcode.POLL_ADD, self._sock.fileno())
            op.flags = events
        lease.hold(op, reading)
        try:
            res = await op.driver.wait_ready(op)
        finally:
            self._end(op, events)
        if res < 0:
            self._check_again(op, res)

    # -- by completion

    @enable_ki_protection
    async def _complete(self, name: int, reading: bool, data: bytes | memoryview) -> int | None:
        """Moves bytes from or to `data`. None: none was, and the call is to be made trio's way."""
        into = (data,) if isinstance(data, memoryview) else ()
        op = self._take(name, reading)
        if op is None:
            release_views(into)
            return None
        try:
            op.buffer, op.length = data, min(len(data), BYTES_MAX)
            if op.driver.begin(op):
                res: int = await wait_task_rescheduled(op.abort)
            else:
                res = await op.driver.perform_by_call(op)
            op.res = -1
            if res >= 0:
                return res
            self._check_again(op, res)
            return None
        finally:
            self._end(op, name, into)
            release_views(into)

    def _take(self, name: int, reading: bool) -> TaskOperation | None:
        """An operation that moves bytes, with its direction. None: something is not as usual."""
        sock, lease = self._sock, self._own_lease
        if lease is None:
            if type(sock) is not stdlib_socket.socket:
                return None
            lease = self.lease
        if lease.owner is not sock or lease.closed or (reading and lease.kept):
            return None
        holder = lease.reading if reading else lease.writing
        op = self._spare.get(name)
        if holder is not None and holder is not op and _holds(holder):
            return None
        if (lease.operations or lease.copying) and lease.streams_use(reading):
            return None
        if op is not None and self._is_fit(op):
            del self._spare[name]
        else:
            op = self._make(lease, name)
        if op is not None:
            lease.hold(op, reading)
        return op

    def _make(self, lease: Lease, name: int) -> TaskOperation | None:
        fd = self._sock.fileno()
        if fd < 0 or not self._by_completion or not _completes():
            return None
        op = lease.direct_operation(abs(name), fd)
        if name == RECV:
            self._use_first(op)
        elif name == SEND:
            op.flags = _SEND_FLAGS
        return op

    def _is_fit(self, op: TaskOperation) -> bool:
        """Whether it may be used again."""
        driver = op.driver
        return op.fd == self._sock.fileno() and driver.thread == get_ident() and not driver.closed

    @staticmethod
    async def _settle(lease: Lease, reading: bool) -> None:
        """Waits for what a destroyed call left behind, unless another task does."""
        left = lease.reading if reading else lease.writing
        if left is None or left.dispose is None:
            return
        while in_use(left):
            if left.task is not None:
                return
            await left.driver.settle(left)
        if left.dispose is not None:
            left.dispose(left.res if not left.driver.closed else -1)

    def _check_again(self, op: TaskOperation, res: int) -> None:
        """After a negative result: returns if the call is to be made again.

        Raises:
            trio.ClosedResourceError: the socket was closed meanwhile.
            OSError: the operation failed.
        """
        lease = self._own_lease or self.lease
        if res == -errno.ECANCELED or lease.closed or self._sock.fileno() < 0:
            raise trio.ClosedResourceError("another task closed this fd")
        if res == -errno.ENOBUFS and op.group != NO_GROUP:
            # All of the group's were taken in this pass; or the socket says so, then the call will.
            self._use_first(op)
        elif -res not in AGAIN_ERRNOS:
            raise OSError(-res, os.strerror(-res))

    def _end(self, op: TaskOperation, name: int, into: Sequence[memoryview] = ()) -> None:
        """The end of a call, however it ended. `into`: the caller's memory, which it worked on."""
        if op.task is not None:  # the call's coroutine was destroyed
            op.driver.abandon(op)
        if op.opcode == Opcode.POLL_ADD:  # which takes nothing: nobody need look at it any more
            (self._own_lease or self.lease).let_go(op)
            if not op.state.in_kernel:
                self._spare[name] = op
        elif op.state.in_kernel:
            op.dispose = functools.partial(self._dispose, op, into)
        else:
            if op.res >= 0 or op.chunk is not None:  # not taken: destroyed before it resumed
                self._dispose(op, into, op.res)
            self._spare[name] = op

    def _dispose(self, op: TaskOperation, into: Sequence[memoryview], res: int) -> None:
        """Of what nobody is left to receive: it is kept for the next receive."""
        chunk, op.chunk, op.dispose, op.res = op.chunk, None, None, -1
        if res > 0 and op.opcode == RECV:
            (self._own_lease or self.lease).kept += (chunk or b"".join(into))[:res]
        release_views(into)


def _holds(op: TaskOperation) -> bool:
    """Whether a direction is not free for this one. What a destroyed call left is not, either."""
    return op.dispose is not None or in_use(op)


def _completes() -> bool:
    """Whether this run has a ring, which completes operations."""
    return current_driver().completes


async def at_once(fn: Callable[..., _T], *args: Any) -> _T:
    """Calls as trio does what need not block: a checkpoint, unless it raises BlockingIOError."""
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


def _call_on_kept(lease: Lease, fn: Callable[..., _T], args: Any, kwargs: Any) -> _T:
    """Makes a receive on what destroyed receives got.

    On a socket that has nothing else, so that every argument means what it does.
    """
    there, here = stdlib_socket.socketpair()
    with there, here:
        here.setblocking(False)
        put = there.send(lease.kept[:_KEPT_MAX])
        result = fn(here, *args, **kwargs)
        there.shutdown(stdlib_socket.SHUT_WR)
        left = len(here.recv(put))
        lease.kept = lease.kept[put - left :]
        return result


def _flags_of(fn: Callable[..., object], args: Any, kwargs: Any) -> int:
    """The argument `flags` of a receive, which is its last one."""
    before = 1 if fn.__name__ in ("recv", "recvfrom") else 2
    flags = kwargs.get("flags", 0) or next(iter(args[before:]), 0)
    return flags if isinstance(flags, int) else 0


def view_of(buffer: Buffer, count: int = 0, *, writable: bool = False) -> memoryview | None:
    """The first `count` bytes of a caller's buffer, or all of it, exported.

    None: there are none, or it is not as usual.
    """
    try:
        with memoryview(buffer) as view:
            usable = view.nbytes and view.c_contiguous and not (writable and view.readonly)
            if not usable or type(count) is not int or not 0 <= count <= view.nbytes:
                return None
            with view.cast("B") as flat:
                return flat[: count or None]
    except (TypeError, ValueError):  # no buffer, or of a format that cannot be cast
        return None


def _close(sock: stdlib_socket.socket) -> None:
    try:
        trio.lowlevel.notify_closing(sock)
    except RuntimeError:  # not in a run, where nobody waits
        pass
    finally:
        sock.close()
