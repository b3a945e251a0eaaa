"""UringSocket: trio's socket, which waits on the ring and moves bytes by completion.

It is a real trio socket. trio's own code and the socket module's calls resolve names, set options,
accept connections and receive messages, so that results, errors, addresses and audit events are
theirs; only the waiting is ours. A completion takes data on behalf of a thread that may be busy or
stopped. So completions are used only for what belongs to this process alone: the bytes of connected
stream sockets.

Rules of this file: everything unusual goes trio's way: the call is tried, and tried again when a
POLL_ADD says so. If the ring provides buffers, a socket that waits to receive holds no memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from .._accelerator import hot
from .._bytes.views import release_pinned, release_view
from .._descriptors.direction import INTO, RECEIVE, SEND, busy
from .._descriptors.provided import take_chunk
from .._ring.op import NO_GROUP
from .._trio import HAS_RESOLVE_ADDRESS, SocketType_
from .operations import SocketOperations, at_once, view_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from .._driver.operation import TaskOperation

_bytes = bytes  # which an argument is called, too
_T = TypeVar("_T")


class UringSocket(SocketOperations):
    """A trio socket on the ring: trio.socket.SocketType, with its arguments, results and errors.

    Args:
        sock: a plain socket of the standard library, which this one owns from now on. It is made
            non-blocking.

    Raises:
        TypeError: `sock` is something else, such as an SSL socket.

    Every method that waits is a checkpoint. If two tasks wait for the same direction, here or on a
    stream on this socket, the second gets trio.BusyResourceError. Closing the socket wakes the
    tasks that wait with trio.ClosedResourceError. Where there is no io_uring, and if some other
    object was put in place of `sock`, the methods are trio's own.

    Cancellation: as with trio's sockets: what was done is returned, and the cancellation comes at
    the next checkpoint. A cancelled connect closes the socket.
    """

    # -- opening and closing

    def dup(self) -> UringSocket:
        """Like socket.socket.dup."""
        return UringSocket(self._sock.dup())

    def detach(self) -> int:
        """Like socket.socket.detach.

        Tasks that wait on the socket, or on a stream on it, wake with trio.ClosedResourceError.

        Raises:
            RuntimeError: a task waits in a trio.run of another thread. Nothing was detached.
        """
        if self._sock.fileno() != -1:
            lease = self._own_lease or self.lease
            lease.check_thread()
            with contextlib.suppress(RuntimeError):  # outside of trio, where nobody waits
                trio.lowlevel.notify_closing(self._sock)
            lease.release(_nothing)
        return super().detach()

    def close(self) -> None:
        """Closes the socket at once.

        Tasks that wait on it, or on a stream on it, wake with trio.ClosedResourceError.

        Raises:
            RuntimeError: outside of trio; or a task waits in a trio.run of another thread. Nothing
                was closed.
        """
        if self._sock.fileno() != -1:
            lease = self._own_lease or self.lease
            lease.check_thread()
            trio.lowlevel.notify_closing(self._sock)
            lease.close()

    def shutdown(self, flag: int) -> None:
        """Like socket.socket.shutdown."""
        super().shutdown(flag)
        if self._own_lease is not None and self.did_shutdown_SHUT_WR:
            self._own_lease.sending.ended = True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease = self._own_lease
        if lease is not None and lease.used_by() is not None:
            self.close()
        else:
            super().__exit__(exc_type, exc_value, traceback)  # works outside of trio, as trio's

    async def accept(self) -> tuple[UringSocket, Any]:
        """Like socket.socket.accept.

        Cancellation: no connection is lost.
        """
        sock, address = await super().accept()
        return become_ours(sock), address  # type: ignore[return-value]

    @enable_ki_protection
    async def connect(self, address: Any) -> None:
        """Like socket.socket.connect, with trio's resolution of names.

        Cancellation: the socket is closed.
        """
        lease = self._lease_on_ring()
        if lease is None or not HAS_RESOLVE_ADDRESS:
            await super().connect(address)
            return
        try:
            address = await self._resolve_address_nocp(address, local=False)
            try:
                await at_once(self._sock.connect, address)
                return
            except BlockingIOError as exc:
                if exc.errno == errno.EAGAIN:  # a Unix socket's backlog is full: nothing has begun
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    raise
            await self._wait(lease.sending)
        except trio.Cancelled:
            self.close()  # it may be half connected
            raise
        code = self._sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ERROR)
        if code:
            raise OSError(code, f"Error connecting to {address!r}: {os.strerror(code)}")

    # -- trio's way

    @enable_ki_protection
    async def _nonblocking_helper(
        self,
        wait_fn: Callable[[Any], Awaitable[None]],
        fn: Callable[..., _T],
        *args: Any,
        **kwargs: Any,
    ) -> _T:
        """Calls `fn` on the plain socket until it does not block, as trio's methods do."""
        lease, reading = self._lease_on_ring(), wait_fn is trio.lowlevel.wait_readable
        if lease is None:
            own = self._own_lease
            if own is not None:
                way = own.receiving if reading else own.sending
                if way.held:
                    await trio.lowlevel.checkpoint()
                    raise busy()
                if way.kept is not None and own.owner is self._sock:
                    with contextlib.suppress(BlockingIOError):
                        return await at_once(self._call, way, fn, args, kwargs)
            return await super()._nonblocking_helper(wait_fn, fn, *args, **kwargs)
        way = lease.receiving if reading else lease.sending
        await way.settle()
        try:
            return await at_once(self._call, way, fn, args, kwargs)
        except BlockingIOError:
            pass
        while True:
            await self._wait(way)
            try:
                return self._call(way, fn, args, kwargs)
            except BlockingIOError:
                pass

    async def wait_writable(self) -> None:
        """Waits until sending might not block.

        Cancellation: it stops waiting.
        """
        lease = self._lease_on_ring()
        if lease is None or self._sock.fileno() < 0:
            await super().wait_writable()
        else:
            await lease.sending.settle()
            await self._wait(lease.sending)

    # -- by completion

    def is_readable(self) -> bool:
        """Whether a receive would return at once."""
        lease = self._own_lease
        return (lease is not None and lease.receiving.kept is not None) or super().is_readable()

    @enable_ki_protection
    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """Like socket.socket.recv."""
        usual = not flags and type(buflen) is int and buflen > 0
        lent = self._lend(RECEIVE, True) if usual else None
        if lent is None:
            return await super().recv(buflen, flags)
        way, op = lent
        try:
            size = way.size
            op.length = buflen if buflen < size else size
            if op.group == NO_GROUP:  # there are no provided buffers: bring one
                op.buffer = op.memory = memoryview(bytearray(op.length))
            res = await op.engine.perform(op)
            if res >= 0:
                return take_chunk(way, op, res)
            self._check_again(way, op, res)
        finally:
            if op.owed:
                way.leave(op)
            elif op.memory is not None:
                op.memory = None
        return await super().recv(buflen, flags)

    @enable_ki_protection
    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Like socket.socket.recv_into."""
        view = view_of(buffer, nbytes, writable=True) if not flags else None
        if view is not None:
            count = await self._complete(INTO, view)
            if count is not None:
                return count
        return await super().recv_into(buffer, nbytes, flags)

    @enable_ki_protection
    async def send(self, bytes: Buffer, flags: int = 0, /) -> int:
        """Like socket.socket.send."""
        if not flags:
            data = bytes if type(bytes) is _bytes and bytes else view_of(bytes)
            if data is not None:
                count = await self._complete(SEND, data)
                if count is not None:
                    return count
        return await super().send(bytes, flags)

    # -- what is left when the accelerator has made the operation, and its result is negative

    @enable_ki_protection
    async def _recv_rest(self, op: TaskOperation, buflen: int) -> _bytes:
        self._check_again(self.lease.receiving, op, op.res)
        return await super().recv(buflen)

    @enable_ki_protection
    async def _recv_into_rest(self, op: TaskOperation, view: memoryview) -> int:
        try:
            self._check_again(self.lease.receiving, op, op.res)
            return await super().recv_into(view)
        finally:
            release_view(view)

    @enable_ki_protection
    async def _send_rest(self, op: TaskOperation, data: Buffer) -> int:
        try:
            self._check_again(self.lease.sending, op, op.res)
            return await super().send(data)
        finally:
            release_pinned(data)


if hot is not None:
    hot.use_socket_methods(UringSocket)


def become_ours(sock: trio.socket.SocketType) -> trio.socket.SocketType:
    """Turns a socket of trio's own class into a UringSocket; it stays the same object.

    A socket of any other class is left as it is.
    """
    if type(sock) is SocketType_:
        sock.__class__ = UringSocket
    return sock


def _nothing() -> None:
    pass
