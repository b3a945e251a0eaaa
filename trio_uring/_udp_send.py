"""The sending half of a UDP socket: one datagram, or many in few system calls.

Many datagrams become messages: runs of one size to one address are one, which the kernel splits (_udp_messages.py). A message
is sent with sendmsg(2), and when that would block, by a SENDMSG that waits: one after the other, which keeps the order. A
datagram is cheaper to send than to describe to the ring, even if 32 enter the kernel at once (docs/design.md).

Rules of this file: at most one send of a socket is in the kernel. What the kernel took is counted in `datagrams_sent` before
anything else can happen.
"""

from __future__ import annotations

import errno
import functools
import os
import select
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from ._addresses import pack_address
from ._ancillary import pack_control
from ._endpoint import Endpoint
from ._errors import AGAIN_ERRNOS, CLOSED_ERRNOS
from ._op import Message, Opcode
from ._send import IOV_MAX, buffer_view, buffer_views
from ._timed import within
from ._udp_messages import SEGMENTED_MAX, Outgoing, coalesce, segment_control
from ._views import release_views

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from ._engine import TaskOperation

BURST = 32  # messages that are sent before other tasks run
ROUND = 2048  # datagrams that send_many takes from its iterable at a time

# A run that the kernel will not split: datagrams larger than the MTU (older kernels: EINVAL), a device or a tunnel that cannot.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.EINVAL})
_NO_SEGMENTS = _TOO_LARGE | {errno.EIO, errno.EOPNOTSUPP}

_pack = functools.lru_cache(maxsize=1024)(pack_address)


class UDPSend(Endpoint):
    """Mixed into UDPSocket."""

    _sending = False
    _send: TaskOperation | None = None
    _segment_max = 0
    _family: int
    _plain: stdlib_socket.socket

    send_timeout: float | None = None
    """Seconds that one send may take; None: no limit."""

    datagrams_sent: int = 0
    """Datagrams of the current or last send that the kernel has taken; every send resets it.

    After a send_many that was cancelled or failed: its first `datagrams_sent` datagrams were sent, the others not.
    """

    async def send_to(self, data: Buffer | Sequence[Buffer], address: Any = None, *, timeout: float | None = None) -> None:
        """Sends one datagram.

        Args:
            data: a buffer, or a sequence of buffers that together are the datagram, as of SocketStream.send_all. Nothing, b"",
                is a datagram, too. At most 65,507 bytes over IPv4 and 65,527 over IPv6.
            address: where to; a name is resolved. None: to where the socket is connected.
            timeout: seconds; None: the socket's `send_timeout`; math.inf: no limit.

        Raises:
            trio.TooSlowError: the time was up, and the datagram was not sent.
            trio.BusyResourceError: another task is sending on this socket.
            trio.ClosedResourceError: this socket was closed.
            OSError: the kernel refused it: EMSGSIZE for a datagram that is too long, EDESTADDRREQ without an address;
                ConnectionRefusedError on a connected socket, of which an earlier datagram could not be delivered.
            TypeError: `data` is not a buffer or a sequence of buffers.

        Cancellation: the datagram was not sent, if trio.Cancelled is raised.
        """
        with within(self.send_timeout if timeout is None else timeout):
            await self._send_to(data, address)

    async def send_many(self, datagrams: Iterable[Any], *, timeout: float | None = None) -> int:
        """Sends many datagrams, in order, in as few system calls as the kernel allows.

        Args:
            datagrams: each is (data, address), or data for where the socket is connected; `data` is one buffer. 2,048 are taken
                from the iterable at a time.
            timeout: seconds for the whole call; None: the socket's `send_timeout`; math.inf: no limit.

        Returns:
            How many were sent: all.

        Runs of datagrams of the same size to the same address (the last of a run may be shorter) go as one message that the
        kernel splits (GSO, Linux 4.18), up to 64 in 65,507 bytes; they are copied. Each message is sent when the one before it
        has been, also when the socket's buffer was full in between. A checkpoint after every 32 messages.

        Raises:
            As send_to, and whatever the iterable raises. `datagrams_sent` says how many were sent: those after them were not.

        Cancellation: `datagrams_sent` says how many were sent.
        """
        with within(self.send_timeout if timeout is None else timeout):
            return await self._send_many(datagrams)

    def _begin_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is currently sending on this socket")
        self._check_open()
        self._sending, self.datagrams_sent = True, 0

    @enable_ki_protection
    async def _send_to(self, data: Buffer | Sequence[Buffer], address: Any) -> None:
        views = buffer_views(data)
        try:
            self._begin_send()
            try:
                to = address if address is None or self._is_numeric(address) else await self._resolve(address)
                buffers: list[Any] = views if len(views) <= IOV_MAX else [b"".join(views)]
                await trio.lowlevel.checkpoint_if_cancelled()
                self._check_open()
                if self._send_now(buffers, to, 0):
                    self.datagrams_sent = 1
                    await trio.lowlevel.cancel_shielded_checkpoint()
                while not self.datagrams_sent:
                    self.datagrams_sent = await self._wait_to_send(buffers, to, 0)
            finally:
                self._sending = False
        finally:
            release_views(views)

    def _send_now(self, buffers: Sequence[Any], to: Any, segment: int) -> bool:
        """False: it would block, or the kernel does not make such runs."""
        try:
            self._plain.sendmsg(buffers, segment_control(segment), 0, to)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self._refused(exc.errno or 0, buffers, segment)
            return False
        return True

    async def _wait_to_send(self, buffers: Sequence[Any], to: Any, segment: int) -> bool:
        """On the ring, which waits until there is room. False: to be done again."""
        self._check_open()
        op = self._send = self._send or self._operation(Opcode.SENDMSG)
        op.buffers, op.length = buffers, sum(map(len, buffers))
        op.message = Message(b"" if to is None else _pack(self._family, to), pack_control(segment_control(segment)))
        try:
            res = await op.driver.perform(op)
        finally:
            if op.state.in_kernel:  # this coroutine was destroyed
                self._send = None
        if res >= 0:
            return True
        if self._closed or res == -errno.ECANCELED or -res in CLOSED_ERRNOS:
            raise trio.ClosedResourceError("this socket was closed")
        if -res in AGAIN_ERRNOS:
            await self._poll(select.POLLOUT)
        else:
            self._refused(-res, buffers, segment)
        return False

    def _refused(self, code: int, buffers: Sequence[Any], segment: int) -> None:
        """Raises the error; returns if it is for a run, whose datagrams may well be sent alone."""
        if segment and code in _NO_SEGMENTS:
            self._segment_max = segment - 1 if code in _TOO_LARGE else 0
            return
        if code == errno.EMSGSIZE:
            length, limit = sum(map(len, buffers)), f"at most {SEGMENTED_MAX} over IPv4"
            raise OSError(code, f"a datagram of {length} bytes is too long for this socket and its route ({limit})")
        raise OSError(code, os.strerror(code))

    @enable_ki_protection
    async def _send_many(self, datagrams: Iterable[Any]) -> int:
        self._begin_send()
        try:
            source = iter(datagrams)
            while await self._send_round(islice(source, ROUND)):
                pass
            if not self.datagrams_sent:
                await trio.lowlevel.checkpoint()
            return self.datagrams_sent
        finally:
            self._sending = False

    async def _send_round(self, datagrams: Iterable[Any]) -> bool:
        """False: there were none."""
        items: list[tuple[Any, Any]] = []
        try:
            await self._add_items(datagrams, items)
            done = 0
            while done < len(items):
                await trio.lowlevel.checkpoint_if_cancelled()
                sent, message = self._send_burst(items, done)
                if message is None:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                elif await self._wait_to_send((message.payload,), message.address, message.segment):
                    self.datagrams_sent += message.datagrams
                    sent += message.datagrams
                done += sent
            return bool(items)
        finally:
            release_views(data for data, _ in items if type(data) is memoryview)

    def _send_burst(self, items: Sequence[tuple[Any, Any]], start: int) -> tuple[int, Outgoing | None]:
        """Sends messages until one would block. Returns how many datagrams they were, and that one."""
        self._check_open()
        sent, segment_max = 0, self._segment_max
        for message in islice(coalesce(items, start, segment_max), BURST):
            payload, to, segment, count = message
            if not self._send_now((payload,), to, segment):
                return sent, message if self._segment_max == segment_max else None
            sent += count
            self.datagrams_sent += count
        return sent, None

    # -- what was given

    async def _add_items(self, datagrams: Iterable[Any], items: list[tuple[Any, Any]]) -> None:
        for datagram in datagrams:
            data, address = datagram if type(datagram) is tuple else (datagram, None)
            if address is not None and not self._is_numeric(address):
                address = await self._resolve(address)
            items.append((data if type(data) is bytes else _bytes_of(data), address))

    def _is_numeric(self, address: Any) -> bool:
        try:
            return bool(_pack(self._family, address))
        except (OSError, TypeError, ValueError, OverflowError):  # a name, or wrong: to be found out with more patience
            return False

    async def _resolve(self, address: Any) -> Any:
        return await self._owner._resolve_address_nocp(address, local=False)  # type: ignore[union-attr]


def _bytes_of(data: Any) -> memoryview | bytes:
    view = buffer_view(data)
    return view.cast("B") if view.nbytes else b""
