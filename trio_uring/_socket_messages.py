"""The calls of a UringSocket that give or take addresses and control data.

Rules of this file: those of _socket.py. Descriptors that come in a message nobody is left to receive are closed.
"""

from __future__ import annotations

import errno
import operator
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any

import trio
from trio._socket import _SocketType
from trio.lowlevel import enable_ki_protection

from ._addresses import pack_address, unpack_address
from ._ancillary import pack_control, unpack_control
from ._op import Message, Opcode
from ._socket_calls import SocketCalls, byte_count, on_ring, readable, writable
from ._views import release_view, release_views

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

_CONTROL_MAX = 2**31 - 1
_NOSIGNAL = int(stdlib_socket.MSG_NOSIGNAL)
_PRIVATE_FLAGS = int(stdlib_socket.MSG_CMSG_CLOEXEC)  # that we pass, and the caller did not ask for


class SocketMessages(SocketCalls):
    """Mixed into UringSocket."""

    _known_address: tuple[Any, bytes] | None = None  # the last one that was sent to, as it was given and as the kernel has it

    @on_ring(_SocketType.recvfrom, addressed=True)
    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As socket.socket.recvfrom."""
        data, message = await self._receive_message(byte_count(bufsize, "recvfrom"), 0, flags)
        return data, unpack_address(message.name)

    @on_ring(_SocketType.recvfrom_into, addressed=True)
    async def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As socket.socket.recvfrom_into."""
        view = writable(buffer, nbytes, "recvfrom_into")
        try:
            count, message = await self._receive_message_into([view], 0, flags)
        finally:
            release_view(view)
        return count, unpack_address(message.name)

    @on_ring(_SocketType.recvmsg, addressed=True)
    async def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        """As socket.socket.recvmsg. Descriptors that it receives are close-on-exec."""
        size, control_max = byte_count(bufsize, "recvmsg"), _control_size(ancbufsize)
        data, message = await self._receive_message(size, control_max, flags)
        return data, *_told(message)

    @on_ring(_SocketType.recvmsg_into, addressed=True)
    async def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, object]:
        """As socket.socket.recvmsg_into. Descriptors that it receives are close-on-exec."""
        views: list[memoryview] = []
        try:
            views.extend(writable(buffer, 0, "recvmsg_into") for buffer in buffers)
            count, message = await self._receive_message_into(views, _control_size(ancbufsize), flags)
        finally:
            release_views(views)
        return count, *_told(message)

    @enable_ki_protection
    async def _receive_message(self, size: int, control_max: int, flags: int) -> tuple[bytes, Message]:
        op, own, res = await self._take(Opcode.RECVMSG, True, operator.index(flags) | _PRIVATE_FLAGS), None, None
        message = op.message = Message(control_max=control_max)
        try:
            if self.lease.kept and (kept := self._take_kept(size, flags)):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return kept, message
            while True:
                if res is not None:
                    await self._again(op, True, res)
                own = self._choose_whole_buffer(op, size, flags, res == -errno.ENOBUFS)
                op.buffers, op.res = () if own is None else [own], -1
                res = await op.driver.perform(op, True)
                if res >= 0:
                    op.driver.ring.received(op)
                    chunk = self._delivered(op)
                    return chunk or b"" if own is None else self._take_out(own, res), message
        finally:
            self._end(op, () if own is None else [memoryview(own)])

    @enable_ki_protection
    async def _receive_message_into(self, views: list[memoryview], control_max: int, flags: int) -> tuple[int, Message]:
        op = await self._take(Opcode.RECVMSG, True, operator.index(flags) | _PRIVATE_FLAGS)
        message = op.message = Message(control_max=control_max)
        self._use_own(op)
        try:
            if self.lease.kept and (kept := self._take_kept(sum(view.nbytes for view in views), flags)):
                await trio.lowlevel.cancel_shielded_checkpoint()
                return _scatter(kept, views), message
            op.buffers, op.length = views, sum(view.nbytes for view in views)
            count = await self._perform(op, True)
            op.driver.ring.received(op)
            self._delivered(op)
            return count, message
        finally:
            self._end(op, views)

    @on_ring(_SocketType.sendto, addressed=True)
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

    @on_ring(_SocketType.sendmsg, addressed=True)
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
        known = self._known_address
        if known is not None and known[0] == address:
            return known[1]
        resolved = await self._resolve_address_nocp(address, local=False)
        packed = await pack_checked(self._family, resolved)
        if resolved is address and type(address) is tuple:  # numeric: it means the same the next time
            self._known_address = address, packed
        return packed

    @enable_ki_protection
    async def _send_message(self, views: list[memoryview], message: Message, flags: int = 0) -> int:
        op = await self._take(Opcode.SENDMSG, False, operator.index(flags) | _NOSIGNAL)
        op.message, op.buffers, op.length = message, views, sum(view.nbytes for view in views)
        try:
            return await self._perform(op, False)
        finally:
            self._end(op)


async def pack_checked(family: int, address: Any) -> bytes:
    """pack_address, and a checkpoint if it fails."""
    try:
        return pack_address(family, address)
    except OSError:
        await trio.lowlevel.checkpoint()
        raise


def _control_size(ancbufsize: int) -> int:
    if not 0 <= ancbufsize <= _CONTROL_MAX:
        raise ValueError("invalid ancillary data buffer length")
    return ancbufsize


def _scatter(data: bytes, views: list[memoryview]) -> int:
    start = 0
    for view in views:
        part = data[start : start + view.nbytes]
        view[: len(part)] = part
        start += len(part)
    return start


def _told(message: Message) -> tuple[list[tuple[int, int, bytes]], int, object]:
    # control is a buffer still to be filled if the data was of an earlier call, whose coroutine was destroyed
    control = message.control if isinstance(message.control, bytes) else b""
    return unpack_control(control), message.flags & ~_PRIVATE_FLAGS, unpack_address(message.name)
