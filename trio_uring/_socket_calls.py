"""What every I/O call of a UringSocket is made of: its operation, the rule of one a direction, and the errors.

Rules of this file: it knows no method of a socket. An operation belongs to a call from `_take` to `_end`, and is in the lease
from then on, so that closing the socket finds it. What a destroyed call leaves behind is disposed of once.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import select
import socket as stdlib_socket
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from trio._socket import _SocketType  # what trio.socket.socket() makes; its own methods are the fallback
from trio.lowlevel import enable_ki_protection

from ._addresses import FAMILIES
from ._ancillary import close_descriptors
from ._contract import LARGE_SIZE
from ._errors import AGAIN_ERRNOS
from ._lease import Lease, busy, in_use
from ._op import LARGE_GROUP, NO_GROUP, Opcode
from ._views import release_views

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import Buffer

    from ._engine import TaskOperation

BYTES_MAX = 2**30  # asked for in one operation: its length has 32 bits
_CROWDED_STREAK = 256  # receives: there are few large buffers, and to ask in vain costs a pass
_FLAGS_MAX = 2**31 - 1

# The ring waits instead, and is never asked to fill a buffer: MSG_WAITALL would block a worker thread of the kernel.
_NOT_PASSED_ON = ~int(stdlib_socket.MSG_DONTWAIT | stdlib_socket.MSG_WAITALL)

# With these, what a receive got is not the next of the stream.
_ASIDE = int(stdlib_socket.MSG_PEEK | stdlib_socket.MSG_OOB | stdlib_socket.MSG_ERRQUEUE | stdlib_socket.MSG_TRUNC)

# Errors of a call that was refused before the kernel was asked.
_REFUSALS = (TypeError, ValueError, OverflowError, BufferError, trio.BusyResourceError)

_F = TypeVar("_F", bound="Callable[..., Awaitable[Any]]")


def on_ring(theirs: Callable[..., Awaitable[Any]], addressed: bool = False) -> Callable[[_F], _F]:
    """Makes a method an I/O call: a checkpoint also when it is refused, and trio's own where the ring cannot do it.

    Args:
        theirs: trio's method.
        addressed: it takes or gives socket addresses, of which we know some families only.
    """

    def decorate(method: _F) -> _F:
        @functools.wraps(method)
        async def call(self: SocketCalls, *args: Any, **kwargs: Any) -> Any:
            sock = self._sock
            # What a subclass of socket.socket was put there for (tests do that) is to happen.
            if type(sock) is not stdlib_socket.socket:
                return await theirs(self, *args, **kwargs)
            lease = self._own_lease or self.lease
            if sock.fileno() < 0 or lease.closed:
                await trio.lowlevel.checkpoint()
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if addressed and self._family not in FAMILIES:
                return await theirs(self, *args, **kwargs)
            try:
                return await method(self, *args, **kwargs)
            except _REFUSALS:
                await trio.lowlevel.checkpoint()
                raise

        enable_ki_protection(cast("Callable[..., Awaitable[Any]]", call))
        return cast("_F", call)

    return decorate


def _close(sock: stdlib_socket.socket) -> None:
    try:
        trio.lowlevel.notify_closing(sock)
    except RuntimeError:  # not in a run, where nobody waits
        pass
    finally:
        sock.close()


class SocketCalls(_SocketType):
    """A trio socket with a lease on its descriptor."""

    _own_lease: Lease | None = None
    _spare: dict[int, TaskOperation]  # operations to use again, by opcode
    _family: int  # asked once: the socket module makes an enum of it each time
    _kind: int
    _is_stream: bool
    _own: bytearray | None = None  # to receive into, while there are no large buffers
    _crowded = 0  # receives to make with a buffer of their own, for want of large ones

    @property
    def lease(self) -> Lease:
        """The operations on this socket's descriptor: its own, and those of a stream on it."""
        lease = self._own_lease
        if lease is None:  # not in __init__: an enabled run makes ours of sockets that trio has initialised
            sock = self._sock
            self._spare = {}
            self._family, self._kind = int(sock.family), int(sock.type)
            self._is_stream = self._kind == stdlib_socket.SOCK_STREAM
            lease = self._own_lease = Lease(sock, functools.partial(_close, sock), sock.shutdown)
        return lease

    async def _take(self, opcode: Opcode, reading: bool, flags: int = 0) -> TaskOperation:
        """An operation of the caller's own, and the direction, if it is free."""
        lease = self._own_lease or self.lease
        left = lease.reading if reading else lease.writing
        if left is not None and left.dispose is not None:
            await self._settle(left)
        flags = operator.index(flags)
        if not -_FLAGS_MAX - 1 <= flags <= _FLAGS_MAX:
            raise OverflowError("flags do not fit into a C int")
        flags = flags & _NOT_PASSED_ON & 0xFFFFFFFF
        fd = self._sock.fileno()
        op = self._spare.pop(int(opcode), None)
        if op is None or op.driver.closed or op.driver.thread != get_ident():
            op = lease.direct_operation(opcode, fd)
        self._hold(op, reading)
        if op.flags != flags or op.fd != fd:
            op.flags, op.fd, op.entry = flags, fd, None
        return op

    @staticmethod
    async def _settle(left: TaskOperation) -> None:
        """Waits for what a call left behind whose coroutine was destroyed, unless another task does."""
        while in_use(left):
            if left.task is not None:
                return
            await left.driver.settle(left)
        if left.dispose is not None:
            left.dispose(left.res if not left.driver.closed else -1)

    def _take_quickly(self, opcode: int, reading: bool, flags: int) -> TaskOperation | None:
        """The operation of the last such call, with the direction. None: something is not as usual."""
        lease = self._own_lease
        if lease is None or lease.owner is not self._sock or lease.operations or lease.kept or lease.closed:
            return None
        op = self._spare.get(opcode)
        if op is None or op.flags != flags or op.fd != self._sock.fileno():
            return None
        holder = lease.reading if reading else lease.writing
        if op.driver.thread != get_ident() or op.driver.closed:
            return None
        if holder is not op and holder is not None and (holder.dispose is not None or in_use(holder)):
            return None
        del self._spare[opcode]
        if reading:
            lease.reading = op
        else:
            lease.writing = op
        return op

    def _hold(self, op: TaskOperation, reading: bool) -> None:
        """Takes the direction for `op`, unless somebody has it."""
        lease = self._own_lease or self.lease
        holder = lease.reading if reading else lease.writing
        if holder is not None and holder is not op and in_use(holder):
            raise busy(reading)
        if lease.operations:
            lease.check_streams(reading)
        if reading:
            lease.reading = op
        else:
            lease.writing = op

    def _end(self, op: TaskOperation, into: Sequence[memoryview] = ()) -> None:
        """The end of a call, however it ended. `into`: the buffers that it received into."""
        if op.task is not None:
            op.driver.abandon(op)
        if op.state.in_kernel:  # this call's coroutine was destroyed: the ring has it still, and the lease
            op.dispose = functools.partial(self._dispose, op, into)
            return
        if op.res >= 0 or op.chunk is not None:  # a receive's result that was not taken: destroyed before it resumed
            self._dispose(op, into, op.res)
        op.message = None
        self._spare[op.opcode] = op

    def _dispose(self, op: TaskOperation, into: Sequence[memoryview], res: int) -> None:
        """Of what nobody is left to receive: descriptors are closed, and bytes of a stream kept for its next receive.

        A datagram is lost.
        """
        chunk, op.chunk, op.dispose, op.res = op.chunk, None, None, -1
        if res >= 0 and op.opcode == Opcode.ACCEPT:
            os.close(res)
        elif res >= 0 and op.opcode in (Opcode.RECV, Opcode.RECVMSG):
            if op.opcode == Opcode.RECVMSG and op.message is not None:
                op.driver.ring.received(op)
                close_descriptors(bytes(op.message.control))
            if self._is_stream and not op.flags & _ASIDE:
                self.lease.kept += (chunk or b"".join(into))[:res]
        release_views(into)

    def _delivered(self, op: TaskOperation) -> bytes | None:
        """Notes that the call has its result, and gives what a provided buffer held."""
        chunk, op.chunk, op.res = op.chunk, None, -1
        return chunk

    def _take_kept(self, most: int, flags: int) -> bytes:
        """What destroyed receives got, for one that takes what is next in the stream."""
        lease = self.lease
        if not lease.kept or flags & _ASIDE & ~stdlib_socket.MSG_PEEK:
            return b""
        chunk = lease.kept[:most]
        if not flags & stdlib_socket.MSG_PEEK:
            lease.kept = lease.kept[most:]
        return chunk

    async def _perform(self, op: TaskOperation, reading: bool) -> int:
        """The result, >= 0, of an operation whose buffers are set. A checkpoint, always.

        Raises:
            As _again.
        """
        buffer, buffers = op.buffer, op.buffers
        while True:
            res = await op.driver.perform(op, True)
            if res >= 0:
                return res
            await self._again(op, reading, res)
            op.buffer, op.buffers = buffer, buffers

    async def _again(self, op: TaskOperation, reading: bool, res: int) -> None:
        """After a negative result: returns if the operation is to be made again.

        Raises:
            trio.ClosedResourceError: the socket was closed meanwhile.
            trio.BusyResourceError: meanwhile another task has taken the direction.
            OSError: the operation failed.
        """
        if res == -errno.ECANCELED or self._sock.fileno() < 0 or self.lease.closed:
            raise trio.ClosedResourceError("another task closed this socket")
        if -res in AGAIN_ERRNOS:
            await self._poll(reading)
        elif res != -errno.ENOBUFS or op.group == NO_GROUP:
            raise OSError(-res, os.strerror(-res))
        self._hold(op, reading)

    async def _poll(self, reading: bool) -> None:
        """Waits until the direction is ready, which may be told too early."""
        # What it takes the place of is over: a call that waits here has nothing in the kernel.
        op = await self._take(Opcode.POLL_ADD, reading, select.POLLIN if reading else select.POLLOUT)
        try:
            res = await op.driver.perform(op)
            op.res = -1
        finally:
            self._end(op)
        if res < 0 and -res not in AGAIN_ERRNOS:
            await self._again(op, reading, res)

    def _choose_whole_buffer(self, op: TaskOperation, size: int, flags: int, crowded: bool) -> bytearray | None:
        """Of a receive that may need all of `size`: a large provided buffer, so that a socket that waits holds none.

        Or the one that is returned: the ring provides none, all were taken (`crowded`), or it would not do.
        """
        # With MSG_TRUNC the result counts bytes that are not in the buffer.
        provided = op.driver.ring.info.provided_buffers and 0 < size <= LARGE_SIZE and not flags & stdlib_socket.MSG_TRUNC
        if provided and crowded:
            self._crowded = _CROWDED_STREAK
        if provided and self._crowded:
            self._crowded -= 1
        elif provided:
            self._own = None
            if op.group != LARGE_GROUP:
                op.group, op.entry = LARGE_GROUP, None
            op.length = size
            return None
        self._use_own(op)
        op.length = min(size, BYTES_MAX)
        own, self._own = self._own, None
        return own if own is not None and len(own) == op.length else bytearray(op.length)

    def _take_out(self, own: bytearray, count: int) -> bytes:
        """What was received into `own`, which is used again: new memory costs more than the receive."""
        if count > len(own):  # with MSG_TRUNC the result may count more than there is, and callers take the length for it
            return bytes(own) + bytes(count - len(own))
        if len(own) <= LARGE_SIZE and not self._is_stream:
            self._own = own
        return bytes(memoryview(own)[:count])

    @staticmethod
    def _use_own(op: TaskOperation) -> None:
        """Sets the operation to bring its own buffer."""
        op.res = -1
        if op.group != NO_GROUP:
            op.group, op.entry = NO_GROUP, None


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
    count = byte_count(count, method)
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        view.release()
        raise TypeError(f"{method}() takes a read-write, C-contiguous bytes-like object")
    view = _bytes_of(view)
    if count > view.nbytes:
        view.release()
        raise ValueError(f"buffer too small for requested bytes: {count}")
    if not count or count == view.nbytes:
        return view
    with view:
        return view[:count]


def _bytes_of(view: memoryview) -> memoryview:
    """As bytes. The view given is released: a traceback that keeps it would keep the caller's buffer exported."""
    if not view.c_contiguous:
        view.release()
        raise BufferError("sockets take C-contiguous buffers: make a contiguous copy of this one first")
    if view.format == "B" and view.ndim == 1:
        return view
    with view:
        return view.cast("B") if view.nbytes else memoryview(bytearray())
