"""UringSocket: trio's socket, whose I/O is done by the ring.

It is a real trio socket: names are resolved, options set and addresses told by trio's own code, which it inherits. What
accepts, connects, sends, receives or waits is ours.

Rules of this file: arguments, results and errors are the socket module's. A direction is free as soon as its completion is
reaped, whenever the task resumes. A socket that waits holds no memory for what it will receive, if the ring provides buffers.
"""

from __future__ import annotations

import errno
import os
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from ._addresses import pack_address, unpack_address
from ._contract import SMALL_SIZE
from ._op import LARGE_GROUP, NO_GROUP, Message, Opcode
from ._provided import BufferChoice
from ._socket_calls import BYTES_MAX, byte_count, on_ring, readable, writable
from ._socket_messages import SocketMessages
from ._views import release_view

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from ._engine import TaskOperation


class UringSocket(SocketMessages, BufferChoice):
    """A trio socket on the ring: every method of trio.socket.SocketType, with its arguments, results and errors.

    Args:
        sock: a plain socket of the standard library, which this one owns from now on. It is made non-blocking.

    Raises:
        TypeError: it is something else, an SSL socket for instance.

    Every method that waits is a checkpoint. Two tasks that wait for the same direction get trio.BusyResourceError; closing the
    socket wakes those that wait on it with trio.ClosedResourceError. Addresses of other families than IPv4, IPv6 and Unix are
    left to trio's own methods, as is a socket object that was put in place of `sock`.

    Cancellation: as with trio's: what was done is returned, and the cancellation comes at the next checkpoint. A cancelled
    connect closes the socket.
    """

    _kept = b""  # what a receive got whose coroutine was destroyed

    # -- opening and closing

    def dup(self) -> UringSocket:
        """As socket.socket.dup."""
        return UringSocket(self._sock.dup())

    def close(self) -> None:
        """Closes the socket at once. Tasks that wait on it, or on a stream on it, wake with trio.ClosedResourceError."""
        if self._sock.fileno() != -1:
            self.lease.close()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @on_ring(addressed=True)
    @enable_ki_protection
    async def accept(self) -> tuple[UringSocket, Any]:
        """As socket.socket.accept. Cancellation: a connection that arrived meanwhile is returned; none is lost."""
        op = self._take(Opcode.ACCEPT, stdlib_socket.SOCK_CLOEXEC | stdlib_socket.SOCK_NONBLOCK)
        message = op.message = Message()
        op.dispose, op.res = _close_accepted, -1
        try:
            fd = await self._perform(op, select.POLLIN)
            op.driver.ring.received(op)
            op.res = -1
            sock = stdlib_socket.socket(self.family, self.type, self.proto, fd)
            return UringSocket(sock), unpack_address(message.name)
        finally:
            if not op.state.in_kernel:
                _close_accepted(op.res)  # it was done, and this coroutine destroyed before it resumed
            self._give_back(op)

    @on_ring(addressed=True)
    @enable_ki_protection
    async def connect(self, address: Any) -> None:
        """As socket.socket.connect, with trio's resolution of names. Cancellation: the socket is closed."""
        try:
            address = await self._resolve_address_nocp(address, local=False)
            packed = pack_address(self.family, address)
            op = self._take(Opcode.CONNECT)
            try:
                op.buffer, op.offset, op.entry = packed, len(packed), None
                await self._perform(op, select.POLLOUT)
            finally:
                self._give_back(op)
        except trio.Cancelled:
            self.close()  # the kernel leaves it half connected
            raise
        except OSError as exc:
            if isinstance(exc, stdlib_socket.gaierror) or not exc.errno:
                raise
            raise OSError(exc.errno, f"Error connecting to {address!r}: {exc.strerror}") from None

    @on_ring(addressed=False)
    async def wait_writable(self) -> None:
        """Waits until sending might be possible without blocking. Cancellation: it stops waiting."""
        self._check_direction_free(Opcode.SEND)
        await self._poll(select.POLLOUT)

    # -- receiving

    @on_ring(addressed=False)
    @enable_ki_protection
    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """As socket.socket.recv."""
        buflen = byte_count(buflen, "recv")
        op = self._take(Opcode.RECV, flags)
        try:
            if self._kept or not buflen:
                await trio.lowlevel.checkpoint()
                return self._take_kept(buflen)
            if self.type != stdlib_socket.SOCK_STREAM:
                return await self._receive_datagram(op, buflen, flags)
            op.dispose = self._keep_abandoned(op)
            return await self._receive_bytes(op, buflen)
        finally:
            if op.chunk and not op.state.in_kernel:  # done, and this coroutine destroyed before it resumed
                self._kept += op.chunk
            self._give_back(op)

    async def _receive_bytes(self, op: TaskOperation, most: int) -> bytes:
        """Of a stream: into a buffer of the size that its messages seem to have."""
        if op.group == NO_GROUP:
            self._use_first(op)
        while True:
            if op.group == NO_GROUP:
                return await self._receive_into_own(op, min(most, self._size))
            op.length = min(most, self._size)
            try:
                res = await self._perform(op, select.POLLIN)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._use_first(op)  # all of the group were taken in this pass; they are back by the next one
                continue
            chunk, op.chunk = op.chunk, None
            if op.group == LARGE_GROUP or res == SMALL_SIZE:
                self._adapt(op, res)
            return chunk or b""

    async def _receive_datagram(self, op: TaskOperation, size: int, flags: int) -> bytes:
        """Whole, up to `size`: a small buffer might cut it."""
        if await self._perform_in_group(op, size, flags):
            chunk, op.chunk = op.chunk, None
            return chunk or b""
        return await self._receive_into_own(op, min(size, BYTES_MAX))

    async def _receive_into_own(self, op: TaskOperation, size: int) -> bytes:
        own = bytearray(size)
        op.buffer, op.length = own, size
        res = await self._perform(op, select.POLLIN)
        return bytes(memoryview(own)[:res])

    @on_ring(addressed=False)
    @enable_ki_protection
    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """As socket.socket.recv_into."""
        view = writable(buffer, nbytes, "recv_into")
        try:
            op = self._take(Opcode.RECV, flags)
            try:
                if self._kept or not view.nbytes:
                    await trio.lowlevel.checkpoint()
                    chunk = self._take_kept(view.nbytes)
                    view[: len(chunk)] = chunk
                    return len(chunk)
                if op.group != NO_GROUP:
                    op.group, op.entry = NO_GROUP, None
                op.buffer, op.length = view, min(view.nbytes, BYTES_MAX)
                return await self._perform(op, select.POLLIN)
            finally:
                self._give_back(op)
        finally:
            release_view(view)

    def _take_kept(self, most: int) -> bytes:
        chunk, self._kept = self._kept[:most], self._kept[most:]
        return chunk

    def _keep_abandoned(self, op: TaskOperation) -> Callable[[int], None]:
        def keep(_: int) -> None:
            self._kept += op.chunk or b""
            op.chunk = None

        return keep

    # -- sending

    @on_ring(addressed=False)
    @enable_ki_protection
    async def send(self, bytes: Buffer, flags: int = 0, /) -> int:
        """As socket.socket.send."""
        view = readable(bytes)
        try:
            op = self._take(Opcode.SEND, flags | stdlib_socket.MSG_NOSIGNAL)
            try:
                op.buffer, op.length = view, min(view.nbytes, BYTES_MAX)
                return await self._perform(op, select.POLLOUT)
            finally:
                self._give_back(op)
        finally:
            release_view(view)


def _close_accepted(res: int) -> None:
    if res >= 0:
        os.close(res)
