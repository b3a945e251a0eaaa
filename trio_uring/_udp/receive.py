"""The receiving half of a UDP socket: one datagram, or all that are there.

A receive is the socket module's own call. If that finds nothing, the task waits until the socket is
readable; a waiting task has taken nothing. So what is not read stays in the socket's own buffer,
and when that is full, the kernel drops datagrams.

Rules of this file: one receive of a socket at a time. A datagram that the kernel has handed over
belongs to the socket (`_inbox`) until a call returns it, and so does an error. Datagrams that the
kernel has joined are never given out joined.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any, Literal, overload

import trio
from trio.lowlevel import enable_ki_protection

from .._bytes.timed import within
from .._driver.run import current_driver
from .._streams.endpoint import Endpoint
from .messages import IPV6_RECVPKTINFO, Inbox, local_option, read_control

if TYPE_CHECKING:
    from .._descriptors.direction import Direction
    from .._ring.figures import RingCounters
    from .messages import Datagram, LocalDatagram

DATAGRAM_MAX = 65535  # bytes: no UDP payload is longer, and nothing that GRO joins
MESSAGES_MAX = 128  # in one call: a thousand fall out of the caches, and other tasks wait

# Bytes of control data. The segment size comes after what SO_TIMESTAMPING and other options of the
# socket level put there (about 300 bytes in all), and before what belongs to IP.
CONTROL_MAX, CONTROL_LIMIT = 1024, 65536

_CUT = int(stdlib_socket.MSG_TRUNC | stdlib_socket.MSG_CTRUNC)


class UDPReceive(Endpoint):
    """Mixed into UDPSocket."""

    _plain: stdlib_socket.socket
    _counters: RingCounters  # of the run that has made the last call
    _family: int

    _receiving: Direction
    _joins = False  # UDP_GRO is set
    _tells_local = False
    _control_max = CONTROL_MAX
    _failure: OSError | None = None  # an error to raise once the datagrams before it are returned

    receive_timeout: float | None = None
    """Seconds that one receive may take; None: no limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inbox = Inbox()

    @overload
    async def receive_from(
        self,
        *,
        timeout: float | None = ...,
        local: Literal[False] = False,
    ) -> Datagram: ...
    @overload
    async def receive_from(
        self,
        *,
        timeout: float | None = ...,
        local: Literal[True],
    ) -> LocalDatagram: ...
    async def receive_from(self, *, local: bool = False, timeout: float | None = None) -> Any:
        """Waits for a datagram.

        Args:
            local: also say where it arrived. This is for a socket on the wildcard address of a host
                with several addresses, whose answer is to leave from the one that was asked
                (`send_to(..., local=)`).
            timeout: seconds; None: the socket's `receive_timeout`; math.inf: no limit.

        Returns:
            (payload, address) of one datagram. The payload is whole, at most 65,535 bytes, and b""
            if it is empty. The address is the sender's, as in socket.socket.recvfrom: (host, port),
            or for IPv6 (host, port, flow info, scope id). With `local`, (payload, address,
            Local(host, interface)).

        The first call with `local` asks the kernel for it (IP_PKTINFO, IPV6_RECVPKTINFO). A
        datagram that came earlier over IPv4 has its destination as the host, and interface 0. One
        that this socket had already taken from the kernel, because max_datagrams left it out, has
        Local("", 0): an answer then leaves as it would without `local`.

        Raises:
            trio.TooSlowError: the time was up.
            trio.BusyResourceError: another task is receiving on this socket.
            trio.ClosedResourceError: this socket was closed.
            OSError: an earlier send could not be delivered (a connected socket is told, for
                instance by ConnectionRefusedError). The socket goes on working. EMSGSIZE: options
                that the user set made the kernel cut the control data, and a message that may have
                been several joined datagrams was dropped; there is more room from then on.

        Cancellation: no datagram is lost.
        """
        if timeout is None:
            timeout = self.receive_timeout
        with within(timeout, self, "receive_from"):
            return (await self._receive(1, local))[0]

    @overload
    async def receive_many(
        self, max_datagrams: int = ..., *, local: Literal[False] = ..., timeout: float | None = ...
    ) -> list[Datagram]: ...
    @overload
    async def receive_many(
        self, max_datagrams: int = ..., *, local: Literal[True], timeout: float | None = ...
    ) -> list[LocalDatagram]: ...
    async def receive_many(
        self,
        max_datagrams: int = 1024,
        *,
        local: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Waits until there is a datagram, and returns all that are there.

        Args:
            max_datagrams: the most to return, at least 1.
            local: as in receive_from.
            timeout: seconds to wait for the first; None: the socket's `receive_timeout`; math.inf:
                no limit.

        Returns:
            A list of 1 to `max_datagrams` tuples like the one receive_from returns, in order of
            arrival: all that the socket has, or as many as 128 system calls get. A system call gets
            one datagram, or up to 64 that the kernel has joined.

        Raises:
            ValueError: `max_datagrams` is less than 1.
            Others: the same as receive_from.

        Cancellation: no datagram is lost. Those that the last system call got beyond
        `max_datagrams` are kept for the next receive: at most 65,535 bytes. Nothing else is held
        for a socket that nobody reads.
        """
        if max_datagrams < 1:
            raise ValueError("max_datagrams must be >= 1")
        if timeout is None:
            timeout = self.receive_timeout
        with within(timeout, self, "receive_many"):
            return await self._receive(max_datagrams, local)

    @enable_ki_protection
    async def _receive(self, most: int, local: bool) -> list[Any]:
        way = self._receiving
        way.hold()
        try:
            # Asked for before anything is taken, as it may raise.
            self._counters = current_driver().engine.counters
            if local and not self._tells_local:
                self._ask_for_local()
            await trio.lowlevel.checkpoint_if_cancelled()
            inbox = self._inbox
            self._take(most)
            if inbox.datagrams or self._failure is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while not inbox.datagrams and self._failure is None:
                await self._wait_ready(way)
                way.check_open()
                self._take(most)
            if inbox.datagrams:
                return inbox.take(most, local)
            raise self._told_failure()
        finally:
            way.held = False

    def _told_failure(self) -> OSError:
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure

    def _take(self, most: int) -> None:
        """Takes what the kernel has: MESSAGES_MAX messages, or until there are `most` datagrams."""
        inbox = self._inbox
        had, moved = inbox.datagrams, 0
        if had >= most or self._failure is not None:
            return
        try:
            if self._joins or self._tells_local:
                for _ in range(MESSAGES_MAX):
                    moved += self._take_message()
                    if inbox.datagrams >= most or self._failure is not None:
                        break
            else:
                receive, put = self._plain.recvfrom, inbox.put
                for _ in range(min(most - had, MESSAGES_MAX)):
                    data, address = receive(DATAGRAM_MAX)
                    put(data, 0, address, None)
                    moved += len(data)
        except BlockingIOError:
            pass
        except OSError as exc:
            self._failure = exc
        finally:
            counters = self._counters
            counters.datagrams_received += inbox.datagrams - had
            counters.datagram_bytes_received += moved

    def _take_message(self) -> int:
        """Takes one message with its control data, and returns how many bytes it had."""
        plain: Any = self._plain  # on Windows nothing comes here: it has no recvmsg
        data, ancillary, flags, address = plain.recvmsg(DATAGRAM_MAX, self._control_max)
        segment, local = read_control(ancillary) if ancillary else (0, None)
        if flags & _CUT:
            if flags & stdlib_socket.MSG_CTRUNC:
                self._control_max = min(4 * self._control_max, CONTROL_LIMIT)
            if flags & stdlib_socket.MSG_TRUNC:  # should not happen: there is room for any
                told = f"a datagram of more than {DATAGRAM_MAX} bytes was cut"
                self._failure = OSError(errno.EMSGSIZE, told)
                return 0
            if self._joins and not segment:
                told = "control data was cut, so that several datagrams may have come as one"
                self._failure = OSError(errno.EMSGSIZE, f"{told}: what came was dropped")
                return 0
        self._inbox.put(data, segment, address, local)
        return len(data)

    def _ask_for_local(self) -> None:
        option = local_option(self._family)
        if self._family == stdlib_socket.AF_INET:
            self._plain.setsockopt(stdlib_socket.IPPROTO_IP, option, 1)
        else:
            option = option if IPV6_RECVPKTINFO is None else IPV6_RECVPKTINFO
            self._plain.setsockopt(stdlib_socket.IPPROTO_IPV6, option, 1)
        self._tells_local = True
