"""UringSocket: trio's socket, whose I/O is done by the ring.

It is a real trio socket: names are resolved, options set and addresses told by trio's own code, which it inherits. What
accepts, connects, sends, receives or waits is ours.

Rules of this file: arguments, results and errors are the socket module's. A direction is free as soon as its completion is
reaped, whenever the task resumes. A socket that waits holds no memory for what it will receive, if the ring provides buffers.
"""

from __future__ import annotations

import errno
import operator
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import trio
from trio._socket import _SocketType
from trio.lowlevel import enable_ki_protection, wait_task_rescheduled

from ._addresses import unpack_address
from ._contract import LARGE_SIZE, SMALL_SIZE
from ._op import LARGE_GROUP, NO_GROUP, Message, Opcode
from ._provided import BufferChoice
from ._socket_calls import BYTES_MAX, byte_count, on_ring, readable, writable
from ._socket_messages import SocketMessages, pack_checked
from ._views import release_view

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

    from ._engine import TaskOperation

_RECV, _SEND = int(Opcode.RECV), int(Opcode.SEND)
_NOSIGNAL = int(stdlib_socket.MSG_NOSIGNAL)
_BYTES = bytes  # which an argument is called, too
_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)


class UringSocket(SocketMessages, BufferChoice):
    """A trio socket on the ring: every method of trio.socket.SocketType, with its arguments, results and errors.

    Args:
        sock: a plain socket of the standard library, which this one owns from now on. It is made non-blocking.

    Raises:
        TypeError: it is something else, an SSL socket for instance.

    Every method that waits is a checkpoint. Two tasks that wait for the same direction, here or on a stream on this socket,
    get trio.BusyResourceError; closing the socket wakes those that wait with trio.ClosedResourceError. Addresses of other
    families than IPv4, IPv6 and Unix are left to trio's own methods, as is a socket object that was put in place of `sock`.

    Cancellation: as with trio's: what was done is returned, and the cancellation comes at the next checkpoint. A cancelled
    connect closes the socket.
    """

    # -- opening and closing

    def dup(self) -> UringSocket:
        """As socket.socket.dup."""
        return UringSocket(self._sock.dup())

    def detach(self) -> int:
        """As socket.socket.detach. Tasks that wait on the socket, or on a stream on it, wake with trio.ClosedResourceError."""
        lease = self._own_lease
        if lease is not None and self._sock.fileno() != -1:
            lease.release(_nothing)
        return super().detach()

    def close(self) -> None:
        """Closes the socket at once. Tasks that wait on it, or on a stream on it, wake with trio.ClosedResourceError."""
        if self._sock.fileno() != -1:
            self.lease.close()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @on_ring(_SocketType.accept, addressed=True)
    @enable_ki_protection
    async def accept(self) -> tuple[UringSocket, Any]:
        """As socket.socket.accept. Cancellation: a connection that arrived meanwhile is returned; none is lost."""
        op = await self._take(Opcode.ACCEPT, True, stdlib_socket.SOCK_CLOEXEC | stdlib_socket.SOCK_NONBLOCK)
        message = op.message = Message()
        op.res = -1
        try:
            fd = await self._perform(op, True)
            op.driver.ring.received(op)
            sock = stdlib_socket.socket(self._family, self._kind, self._sock.proto, fd)
            self._delivered(op)
            return UringSocket(sock), unpack_address(message.name)
        finally:
            self._end(op)

    @on_ring(_SocketType.connect, addressed=True)
    @enable_ki_protection
    async def connect(self, address: Any) -> None:
        """As socket.socket.connect, with trio's resolution of names. Cancellation: the socket is closed."""
        try:
            address = await self._resolve_address_nocp(address, local=False)
            packed = await pack_checked(self._family, address)
            op = await self._take(Opcode.CONNECT, False)
            try:
                op.buffer, op.offset, op.entry = packed, len(packed), None
                res = await op.driver.perform(op, True)
                op.res = -1
            finally:
                self._end(op)
                if self.lease.writing is op and not op.state.in_kernel:  # no stream on it need look at this one
                    self.lease.writing = None
            if -res in _CONNECTING:  # by an earlier call, which was interrupted or destroyed
                await self._poll(False)
                res = -self._sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ERROR)
        except trio.Cancelled:
            self.close()  # the kernel leaves it half connected
            raise
        if res == -errno.ECANCELED:
            raise trio.ClosedResourceError("another task closed this socket")
        if res < 0:
            raise OSError(-res, f"Error connecting to {address!r}: {os.strerror(-res)}")

    @on_ring(_SocketType.wait_writable)
    @enable_ki_protection
    async def wait_writable(self) -> None:
        """Waits until sending might be possible without blocking. Cancellation: it stops waiting."""
        await self._poll(False)

    # -- receiving

    def is_readable(self) -> bool:
        """Whether a receive would return at once."""
        lease = self._own_lease
        return (lease is not None and bool(lease.kept)) or super().is_readable()

    @enable_ki_protection
    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """As socket.socket.recv."""
        op, res = None, None
        if type(buflen) is int and buflen > 0 and not flags:
            op = self._take_quickly(_RECV, True, 0)
        if op is None:
            return await self._recv(buflen, flags)
        # What most receives are: one coroutine, and nothing of the general case.
        try:
            size = self._size
            if op.group != NO_GROUP and (buflen <= size or self._is_stream):
                op.length = buflen if buflen < size else size
                if op.driver.begin(op, True):
                    res = await wait_task_rescheduled(op.abort)
                else:
                    res = await op.driver.perform_eagerly(op)
                if res >= 0:
                    chunk, op.chunk, op.res = op.chunk, None, -1
                    if res == SMALL_SIZE or (op.group == LARGE_GROUP and self._is_stream):
                        self._adapt(op, res)
                    return chunk or b""
        finally:
            self._end(op)
        return await self._recv(buflen, flags, res)

    @on_ring(_SocketType.recv)
    @enable_ki_protection
    async def _recv(self, buflen: int, flags: int, res: int | None = None) -> bytes:
        """`res`: the negative result of an operation that was made already."""
        buflen = byte_count(buflen, "recv")
        if not buflen:
            await trio.lowlevel.checkpoint()
            return b""
        op, own = await self._take(Opcode.RECV, True, flags), None
        try:
            if self.lease.kept and (kept := self._take_kept(buflen, flags)):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return kept
            while True:
                if res is not None:
                    await self._again(op, True, res)
                own = self._choose_buffer(op, buflen, flags, res == -errno.ENOBUFS)
                res = await op.driver.perform(op, True)
                if res >= 0:
                    chunk = self._delivered(op)
                    return chunk or b"" if own is None else self._take_out(own, res)
        finally:
            self._end(op, () if own is None else [memoryview(own)])

    def _choose_buffer(self, op: TaskOperation, most: int, flags: int, crowded: bool) -> bytearray | None:
        """Sets what the operation receives into: one that the ring provides, or the one that is returned."""
        if not self._is_stream or flags & stdlib_socket.MSG_TRUNC:
            own = self._choose_whole_buffer(op, most, flags, crowded)
            self._size = LARGE_SIZE
        else:
            if op.group == NO_GROUP or crowded:
                self._use_first(op)
            op.length = min(most, self._size)
            own = bytearray(op.length) if op.group == NO_GROUP else None
        op.buffer, op.res = own, -1
        return own

    @on_ring(_SocketType.recv_into)
    @enable_ki_protection
    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.socket.recv_into."""
        view = writable(buffer, nbytes, "recv_into")
        try:
            if not view.nbytes:
                await trio.lowlevel.checkpoint()
                return 0
            op = await self._take(Opcode.RECV, True, flags)
            try:
                if self.lease.kept and (kept := self._take_kept(view.nbytes, flags)):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    view[: len(kept)] = kept
                    return len(kept)
                self._use_own(op)
                op.buffer, op.length = view, min(view.nbytes, BYTES_MAX)
                count = await self._perform(op, True)
                self._delivered(op)
                return count
            finally:
                self._end(op, [view])
        finally:
            release_view(view)

    # -- sending

    @enable_ki_protection
    async def send(self, bytes: Buffer, flags: int = 0, /) -> int:
        """As socket.socket.send."""
        op, res = None, None
        if type(bytes) is _BYTES and not flags and len(bytes) <= BYTES_MAX:
            op = self._take_quickly(_SEND, False, _NOSIGNAL)
        if op is None:
            return await self._send(bytes, flags)
        try:
            op.buffer, op.length = bytes, len(bytes)  # type: ignore[arg-type]
            if op.driver.begin(op, True):
                res = await wait_task_rescheduled(op.abort)
            else:
                res = await op.driver.perform_eagerly(op)
            op.res = -1
            if res >= 0:
                return res
        finally:
            self._end(op)
        return await self._send(bytes, flags, res)

    @on_ring(_SocketType.send)
    @enable_ki_protection
    async def _send(self, data: Buffer, flags: int, res: int | None = None) -> int:
        """`res`: as of _recv."""
        view = readable(data)
        try:
            op = await self._take(Opcode.SEND, False, operator.index(flags) | _NOSIGNAL)
            try:
                if res is not None:
                    await self._again(op, False, res)
                op.buffer, op.length = view, min(view.nbytes, BYTES_MAX)
                return await self._perform(op, False)
            finally:
                self._end(op)
        finally:
            release_view(view)


def _nothing() -> None:
    pass
