"""The sending half of a UDP socket: one datagram, or many in few system calls.

Datagrams are sent as messages: a run of one size to one address is one message, which the kernel
splits (_udp/messages.py). A message is sent with the socket module's sendto if it is one buffer
without control data, else with its sendmsg; if that would block, it is tried again as soon as the
socket is writable. Messages go one after the other, which keeps the order.

Rules of this file: one send of a socket at a time. What the kernel has taken is counted in
`datagrams_sent` before anything else can happen.
"""

from __future__ import annotations

import errno
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.outgoing import IOV_MAX, buffer_view, buffer_views
from .._bytes.timed import within
from .._bytes.views import release_views
from .._driver.run import current_driver
from .._errors import CLOSED_ERRNOS
from .._streams.endpoint import Endpoint
from .._trio import resolve
from .messages import HAS_MESSAGES, SEGMENTED_MAX, Outbox, is_numeric, local_control

if TYPE_CHECKING:
    import socket as stdlib_socket
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from .._descriptors.direction import Direction
    from .._ring.figures import RingCounters
    from .messages import Control, Item, Local, Outgoing

BURST = 32  # messages that are sent before other tasks run
ROUND = 2048  # datagrams that send_many takes from its iterable at a time

# Errors of a run that the kernel will not split: its datagrams are larger than the MTU (older
# kernels: EINVAL), or a device or tunnel cannot. Or something is wrong with the address: sending
# the datagrams alone finds that out.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.EINVAL})
_NO_SEGMENTS = _TOO_LARGE | {errno.EIO, errno.EOPNOTSUPP}


class UDPSend(Endpoint):
    """Mixed into UDPSocket."""

    _sending: Direction
    _segment_max = 0
    _family: int
    _plain: stdlib_socket.socket
    _counters: RingCounters  # of the run that has made the last call

    send_timeout: float | None = None
    """Seconds that one send may take; None: no limit."""

    datagrams_sent: int = 0
    """Datagrams of the current or last send that the kernel has taken; every send resets it.

    After a send_many that was cancelled or failed, its first `datagrams_sent` datagrams were sent,
    and the others were not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits: dict[Any, int] = {}

    async def send_to(
        self,
        data: Buffer | Sequence[Buffer],
        address: Any = None,
        *,
        local: Local | None = None,
        timeout: float | None = None,
    ) -> None:
        """Sends one datagram.

        Args:
            data: a buffer, or a sequence of buffers that together make the datagram, as in
                SocketStream.send_all; at most 65,507 bytes over IPv4 and 65,527 over IPv6. Empty
                data is a datagram, too.
            address: where to send it; a name is resolved. None: where the socket is connected to.
            local: the local address to leave from, as receive_from returns it. Its interface counts
                only if the address is link-local or a wildcard; otherwise the routes decide. None:
                the kernel chooses.
            timeout: seconds; None: the socket's `send_timeout`; math.inf: no limit.

        Raises:
            trio.TooSlowError: the time was up, and the datagram was not sent.
            trio.BusyResourceError: another task is sending on this socket.
            trio.ClosedResourceError: this socket was closed.
            OSError: the kernel refused it: EMSGSIZE for a datagram that is too long, EDESTADDRREQ
                without an address, EINVAL for a `local` that this host does not have;
                ConnectionRefusedError on a connected socket if an earlier datagram could not be
                delivered; ENOPROTOOPT for a `local` on a platform that takes none (Windows).
            TypeError: `data` is not a buffer or a sequence of buffers.
            ValueError: `local` is not a numeric address of the socket's family.

        Cancellation: if trio.Cancelled is raised, the datagram was not sent.
        """
        if timeout is None:
            timeout = self.send_timeout
        with within(timeout, self, "send_to"):
            await self._send_to(data, address, local)

    async def send_many(self, datagrams: Iterable[Any], *, timeout: float | None = None) -> int:
        """Sends many datagrams, in order, in as few system calls as the kernel allows.

        Args:
            datagrams: each is (data, address) or (data, address, local), as in send_to, or just
                data on a connected socket; `data` is one buffer. 2,048 are taken from the iterable
                at a time.
            timeout: seconds for the whole call; None: the socket's `send_timeout`; math.inf: no
                limit.

        Returns:
            How many were sent, which is all of them.

        A run of datagrams of the same size from and to the same addresses (the last may be shorter)
        is copied into one message that the kernel splits (GSO, Linux 4.18): up to 64 datagrams and
        65,507 bytes. Messages are sent in order, even if the socket's buffer is full in between.
        There is a checkpoint after every 32 messages.

        A run that the kernel refuses is sent one by one. If all of it is taken that way, datagrams
        of that size, or all, to this address are no longer sent in runs, until an option of the
        socket is set.

        Raises:
            Others: the same as send_to, and whatever the iterable raises. `datagrams_sent` says how
                many were sent; those after them were not.

        Cancellation: `datagrams_sent` says how many were sent.
        """
        if timeout is None:
            timeout = self.send_timeout
        with within(timeout, self, "send_many"):
            return await self._send_many(datagrams)

    def _begin_send(self) -> None:
        self._sending.hold()
        try:
            # Asked for before anything is sent, as it may raise.
            self._counters = current_driver().engine.counters
        except BaseException:
            self._sending.held = False
            raise
        self.datagrams_sent = 0

    @enable_ki_protection
    async def _send_to(
        self,
        data: Buffer | Sequence[Buffer],
        address: Any,
        local: Local | None,
    ) -> None:
        views = [] if type(data) is bytes else buffer_views(data)
        try:
            self._begin_send()
            try:
                numeric = type(address) is tuple and is_numeric(self._family, *address)
                if address is not None and not numeric:
                    address = await self._resolve(address)
                buffers: Any = (data,) if type(data) is bytes else views
                if len(buffers) > IOV_MAX:
                    buffers = [b"".join(views)]
                control: Sequence[Control] = () if local is None else self._control(local)
                await trio.lowlevel.checkpoint_if_cancelled()
                self._sending.check_open()
                message = buffers, control, address, 0, 1
                if self._send((message,)):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                else:
                    await self._wait_to_send()
                    while not self._send((message,)):
                        await self._wait_to_send()
            finally:
                self._sending.held = False
        finally:
            release_views(views)

    def _send(self, messages: Iterable[Outgoing], outbox: Outbox | None = None) -> bool:
        """Sends messages; False if one would block. `outbox` is told if a run is refused."""
        plain: Any = self._plain  # Windows has no sendmsg
        before, moved = self.datagrams_sent, 0
        send_message = plain.sendmsg if HAS_MESSAGES else self._send_joined
        try:
            for message in messages:
                buffers, control, address, segment, count = message
                try:
                    if control or segment or address is None or len(buffers) != 1:
                        moved += send_message(buffers, control, 0, address)
                    else:  # which costs less
                        moved += plain.sendto(buffers[0], address)
                except BlockingIOError:
                    return False
                except OSError as exc:
                    if not segment or outbox is None or exc.errno not in _NO_SEGMENTS:
                        raise self._send_error(exc, buffers) from None
                    outbox.refused(message, segment - 1 if exc.errno in _TOO_LARGE else 0)
                    return True
                self.datagrams_sent += count
            return True
        finally:
            counters = self._counters
            counters.datagrams_sent += self.datagrams_sent - before
            counters.datagram_bytes_sent += moved

    def _send_joined(self, buffers: Sequence[Any], _control: object, flags: int, to: Any) -> int:
        """sendmsg where there is none; nothing makes control data there."""
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        plain = self._plain
        return plain.send(data, flags) if to is None else plain.sendto(data, flags, to)

    @staticmethod
    def _send_error(exc: OSError, buffers: Sequence[Any]) -> BaseException:
        if exc.errno in CLOSED_ERRNOS:
            return trio.ClosedResourceError("this socket was closed")
        if exc.errno == errno.EMSGSIZE:
            told = f"a datagram of {sum(map(len, buffers))} bytes is too long for this socket and"
            return OSError(exc.errno, f"{told} its route (at most {SEGMENTED_MAX} over IPv4)")
        return exc

    async def _wait_to_send(self) -> None:
        await self._wait_ready(self._sending)
        self._sending.check_open()

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
            self._sending.held = False

    async def _send_round(self, datagrams: Iterable[Any]) -> bool:
        """Sends these datagrams; False if there were none."""
        items: list[Item] = []
        try:
            await self._add_items(datagrams, items)
            outbox = Outbox(items, self._segment_max, self._limits)
            while outbox.at < len(items):
                await trio.lowlevel.checkpoint_if_cancelled()
                self._sending.check_open()
                if self._send(outbox.messages(BURST), outbox):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                else:
                    await self._wait_to_send()
            return bool(items)
        finally:
            release_views(item[0] for item in items if type(item[0]) is memoryview)

    # -- from what the caller gave to items

    async def _add_items(self, datagrams: Iterable[Any], items: list[Item]) -> None:
        known: Any = None  # an address that is numeric
        for datagram in datagrams:
            address: Any = None
            control: Sequence[Control] = ()
            if type(datagram) is not tuple:
                data = datagram
            elif len(datagram) == 2:
                data, address = datagram
            else:
                data, address, local = datagram
                control = () if local is None else self._control(local)
            if address is not None and address is not known:
                if type(address) is tuple and is_numeric(self._family, *address):
                    known = address
                else:
                    address = await self._resolve(address)
            items.append((data if type(data) is bytes else _bytes_of(data), address, control))

    def _control(self, local: Local) -> tuple[Control]:
        host, interface = local
        return local_control(self._family, host, interface)

    async def _resolve(self, address: Any) -> Any:
        return await resolve(self._owner, address)


def _bytes_of(data: Any) -> memoryview | bytes:
    view = buffer_view(data)
    if not view.nbytes:
        return b""
    # PyPy reads a cast view byte by byte.
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
