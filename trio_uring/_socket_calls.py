"""What every I/O call of a UringSocket is made of: its operation, the rule of one a direction, and the errors.

Rules of this file: it knows no method of a socket. An operation belongs to a call from `take` to `give_back`; what is
in the kernel is in the lease, so that closing the socket finds it.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from trio._socket import _SocketType  # what trio.socket.socket() makes; its own methods are the fallback
from trio.lowlevel import enable_ki_protection

from ._addresses import FAMILIES
from ._contract import LARGE_SIZE
from ._errors import AGAIN_ERRNOS
from ._lease import Lease
from ._op import LARGE_GROUP, NO_GROUP, Opcode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from ._engine import TaskOperation

BYTES_MAX = 2**30  # asked for in one operation: its length has 32 bits

# The ring waits instead, and is never asked to fill a buffer: MSG_WAITALL would block a worker thread of the kernel.
_NOT_PASSED_ON = ~(stdlib_socket.MSG_DONTWAIT | stdlib_socket.MSG_WAITALL)

_READING = frozenset({Opcode.RECV, Opcode.RECVMSG, Opcode.READ, Opcode.ACCEPT})
_WRITING = frozenset({Opcode.SEND, Opcode.SENDMSG, Opcode.WRITE, Opcode.WRITEV, Opcode.CONNECT})
_POLLED = {select.POLLIN: _READING, select.POLLOUT: _WRITING}

# Errors of a call that was refused before the kernel was asked.
_REFUSALS = (TypeError, ValueError, OverflowError, BufferError, trio.BusyResourceError)

_F = TypeVar("_F", bound="Callable[..., Awaitable[Any]]")


def on_ring(addressed: bool) -> Callable[[_F], _F]:
    """Makes a method an I/O call: a checkpoint also when it is refused, and trio's own where the ring cannot do it.

    Args:
        addressed: it takes or gives socket addresses, of which we know some families only.
    """

    def decorate(method: _F) -> _F:
        theirs = getattr(_SocketType, method.__name__)

        @functools.wraps(method)
        async def call(self: SocketCalls, *args: Any, **kwargs: Any) -> Any:
            sock = self._sock
            # What a subclass of socket.socket was put there for (tests do that) is to happen.
            if type(sock) is not stdlib_socket.socket or (addressed and sock.family not in FAMILIES):
                return await theirs(self, *args, **kwargs)
            if sock.fileno() < 0:
                await trio.lowlevel.checkpoint()
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            try:
                return await method(self, *args, **kwargs)
            except _REFUSALS:
                await trio.lowlevel.checkpoint()
                raise

        enable_ki_protection(cast("Callable[..., Awaitable[Any]]", call))
        return cast("_F", call)

    return decorate


class SocketCalls(_SocketType):
    """A trio socket with a lease on its descriptor."""

    _own_lease: Lease | None = None
    _spare: dict[int, TaskOperation] | None = None  # operations to use again, by opcode

    @property
    def lease(self) -> Lease:
        """The operations on this socket's descriptor: its own, and those of a stream on it."""
        lease = self._own_lease
        if lease is None:
            lease = self._own_lease = Lease(self._sock, super().close, self._sock.shutdown)
        return lease

    @enable_ki_protection
    def _take(self, opcode: Opcode, flags: int = 0) -> TaskOperation:
        """An operation of the caller's own, if the direction is free."""
        reading = opcode in _READING
        family = _READING if reading else _WRITING
        for op in self.lease.operations:
            if (op.task is not None or op.state.in_kernel) and (
                op.opcode in family or (op.opcode == Opcode.POLL_ADD and _POLLED.get(op.flags) is family)
            ):
                what = "reading from" if reading else "writing to"
                raise trio.BusyResourceError(f"another task is already {what} this socket")
        spare = self._spare
        if spare is None:
            spare = self._spare = {}
        fd = self._sock.fileno()
        op = spare.pop(opcode) if opcode in spare else self.lease.operation(opcode, fd)
        flags &= _NOT_PASSED_ON
        if op.flags != flags or op.fd != fd:
            op.flags, op.fd, op.entry = flags, fd, None
        return op

    @enable_ki_protection
    def _give_back(self, op: TaskOperation) -> None:
        if op.state.in_kernel:  # this call's coroutine was destroyed: the ring has it still, and the lease
            return
        op.message = op.chunk = op.dispose = None
        assert self._spare is not None
        if op.opcode in self._spare:
            self.lease.operations.remove(op)
        else:
            self._spare[op.opcode] = op

    @enable_ki_protection
    async def _perform(self, op: TaskOperation, events: int) -> int:
        """The result, >= 0, of an operation whose buffers are set. A checkpoint, always.

        Raises:
            trio.ClosedResourceError: the socket was closed meanwhile.
            OSError: the operation failed.
        """
        buffer, buffers = op.buffer, op.buffers
        while True:
            res = await op.driver.perform(op, True)
            if res >= 0:
                return res
            if -res not in AGAIN_ERRNOS or op.opcode == Opcode.CONNECT:
                raise self._error(res)
            await self._poll(events)
            op.buffer, op.buffers = buffer, buffers

    async def _poll(self, events: int) -> None:
        """Waits for poll(2) events, which may come too early."""
        op = self.lease.operation(Opcode.POLL_ADD, self._sock.fileno())
        op.flags = events
        try:
            res = await op.driver.perform(op)
        finally:
            if not op.state.in_kernel:
                self.lease.operations.remove(op)
        if res < 0 and -res not in AGAIN_ERRNOS:
            raise self._error(res)

    async def _perform_in_group(self, op: TaskOperation, size: int, flags: int) -> bool:
        """Receives a datagram into a large provided buffer, so that a socket that waits holds none.

        False: there are none, none is free, or it would not do; the operation is set to bring its own buffer.
        """
        # With MSG_TRUNC the result counts bytes that are not in the buffer.
        if 0 < size <= LARGE_SIZE and not flags & stdlib_socket.MSG_TRUNC and op.driver.ring.info.provided_buffers:
            if op.group != LARGE_GROUP:
                op.group, op.entry = LARGE_GROUP, None
            op.length = size
            try:
                await self._perform(op, select.POLLIN)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
            else:
                return True
        if op.group != NO_GROUP:
            op.group, op.entry = NO_GROUP, None
        return False

    def _check_direction_free(self, opcode: Opcode) -> None:
        self._give_back(self._take(opcode))

    def _error(self, res: int) -> BaseException:
        if res == -errno.ECANCELED or self._sock.fileno() < 0:
            return trio.ClosedResourceError("another task closed this socket")
        return OSError(-res, os.strerror(-res))


def byte_count(count: int, method: str) -> int:
    """An argument that counts bytes, as the socket module takes it."""
    count = operator.index(count)
    if count < 0:
        raise ValueError(f"negative buffersize in {method}")
    return count


def readable(buffer: Buffer) -> memoryview:
    """A caller's buffer to send, exported. A plain TypeError, as the socket module's, for what is none."""
    if isinstance(buffer, str):
        raise TypeError("a bytes-like object is required, not 'str'")
    return _bytes_of(memoryview(buffer))


def writable(buffer: Buffer, count: int, method: str) -> memoryview:
    """The first `count` bytes of a caller's buffer to receive into, exported; 0: all of it."""
    view = memoryview(buffer)
    if view.readonly:
        raise TypeError(f"{method}() takes a read-write bytes-like object")
    view = _bytes_of(view)
    count = byte_count(count, method)
    if count > view.nbytes:
        raise ValueError(f"buffer too small for requested bytes: {count} in {view.nbytes}")
    return view[:count] if count else view


def _bytes_of(view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise BufferError("sockets take C-contiguous buffers: make a contiguous copy of this one first")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B") if view.nbytes else memoryview(bytearray())
