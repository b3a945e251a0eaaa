"""The calls of a UringSocket that give or take addresses and control data.

Rules of this file: those of _socket.py. Descriptors that come in a message nobody is left to receive are closed.
"""

from __future__ import annotations

import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

from trio.lowlevel import enable_ki_protection

from ._addresses import pack_address, unpack_address
from ._ancillary import close_descriptors, pack_control, unpack_control
from ._op import NO_GROUP, Message, Opcode
from ._socket_calls import BYTES_MAX, SocketCalls, byte_count, on_ring, readable, writable
from ._views import release_view, release_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

    from ._engine import TaskOperation

_PRIVATE_FLAGS = stdlib_socket.MSG_CMSG_CLOEXEC  # that we pass, and the caller did not ask for


class SocketMessages(SocketCalls):
    """Mixed into UringSocket."""

    @on_ring(addressed=True)
    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As socket.socket.recvfrom."""
        data, message = await self._receive_message(byte_count(bufsize, "recvfrom"), 0, flags)
        return data, unpack_address(message.name)

    @on_ring(addressed=True)
    async def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As socket.socket.recvfrom_into."""
        view = writable(buffer, nbytes, "recvfrom_into")
        try:
            count, message = await self._receive_message_into([view], 0, flags)
        finally:
            release_view(view)
        return count, unpack_address(message.name)

    @on_ring(addressed=True)
    async def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        """As socket.socket.recvmsg. Descriptors that it receives are close-on-exec."""
        size, control_max = byte_count(bufsize, "recvmsg"), byte_count(ancbufsize, "recvmsg")
        data, message = await self._receive_message(size, control_max, flags)
        return data, *_told(message)

    @on_ring(addressed=True)
    async def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        """As socket.socket.recvmsg_into. Descriptors that it receives are close-on-exec."""
        views: list[memoryview] = []
        try:
            views.extend(writable(buffer, 0, "recvmsg_into") for buffer in buffers)
            count, message = await self._receive_message_into(views, byte_count(ancbufsize, "recvmsg_into"), flags)
        finally:
            release_views(views)
        return count, *_told(message)

    @enable_ki_protection
    async def _receive_message(self, size: int, control_max: int, flags: int) -> tuple[bytes, Message]:
        op, message = self._take_message(control_max, flags)
        try:
            if await self._perform_in_group(op, size, flags):
                chunk, op.chunk = op.chunk, None
                return chunk or b"", self._received(op)
            own = bytearray(min(size, BYTES_MAX))
            op.message, op.buffers, op.length = message, [own], len(own)
            count = await self._perform(op, select.POLLIN)
            return bytes(memoryview(own)[:count]), self._received(op)
        finally:
            self._give_back_message(op)

    @enable_ki_protection
    async def _receive_message_into(self, views: list[memoryview], control_max: int, flags: int) -> tuple[int, Message]:
        op, _ = self._take_message(control_max, flags)
        try:
            if op.group != NO_GROUP:
                op.group, op.entry = NO_GROUP, None
            op.buffers, op.length = views, sum(view.nbytes for view in views)
            count = await self._perform(op, select.POLLIN)
            return count, self._received(op)
        finally:
            self._give_back_message(op)

    def _take_message(self, control_max: int, flags: int) -> tuple[TaskOperation, Message]:
        op = self._take(Opcode.RECVMSG, flags | _PRIVATE_FLAGS)
        message = op.message = Message(control_max=control_max)
        op.dispose, op.res = _close_received(op), -1
        return op, message

    def _received(self, op: TaskOperation) -> Message:
        assert op.message is not None
        op.driver.ring.received(op)
        op.res = -1
        return op.message

    def _give_back_message(self, op: TaskOperation) -> None:
        if not op.state.in_kernel and op.dispose is not None:
            op.dispose(op.res)  # it was done, and this coroutine destroyed before it resumed
        self._give_back(op)

    @on_ring(addressed=True)
    async def sendto(self, *args: Any) -> int:
        """As socket.socket.sendto, with trio's resolution of names: sendto(data[, flags], address)."""
        if not 2 <= len(args) <= 3:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args)} given)")
        data, *flags, address = args
        name = await self._resolve_and_pack(address)
        view = readable(data)
        try:
            return await self._send_message([view], Message(name), *flags)
        finally:
            release_view(view)

    @on_ring(addressed=True)
    async def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        """As socket.socket.sendmsg, with trio's resolution of names."""
        name = b"" if address is None else await self._resolve_and_pack(address)
        views: list[memoryview] = []
        try:
            views.extend(readable(buffer) for buffer in buffers)
            return await self._send_message(views, Message(name, pack_control(ancdata)), flags)
        finally:
            release_views(views)

    async def _resolve_and_pack(self, address: Any) -> bytes:
        return pack_address(self.family, await self._resolve_address_nocp(address, local=False))

    @enable_ki_protection
    async def _send_message(self, views: list[memoryview], message: Message, flags: int = 0) -> int:
        op = self._take(Opcode.SENDMSG, flags | stdlib_socket.MSG_NOSIGNAL)
        try:
            op.message, op.buffers, op.length = message, views, sum(view.nbytes for view in views)
            return await self._perform(op, select.POLLOUT)
        finally:
            self._give_back(op)


def _close_received(op: TaskOperation) -> Callable[[int], None]:
    def close(res: int) -> None:
        op.chunk = None
        if res >= 0 and op.message is not None:
            op.driver.ring.received(op)
            close_descriptors(bytes(op.message.control))

    return close


def _told(message: Message) -> tuple[list[tuple[int, int, bytes]], int, object]:
    flags = message.flags & ~_PRIVATE_FLAGS
    return unpack_control(bytes(message.control)), flags, unpack_address(message.name)
