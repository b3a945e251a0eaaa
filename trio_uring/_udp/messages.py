"""Datagrams as the kernel takes and gives them: runs sent as one message (GSO), and joined ones
(GRO).

Linux splits a large message that is sent with UDP_SEGMENT (4.18) into datagrams of one size, the
last of which may be shorter. For a socket with UDP_GRO (5.0), it joins datagrams of one sender in
the same way. In both directions, the size is in the control data, and so is the local address of a
datagram.

Rules of this file: no socket, no task. A datagram's payload is bytes, or a memoryview of bytes.
Control data has the form that socket.socket.sendmsg and recvmsg use.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import operator
import socket
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# From linux/udp.h, linux/in.h and macOS's netinet/in.h; Python has no names for them, or not in
# every version.
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP_PKTINFO = {"linux": 8, "darwin": 26}.get(sys.platform)
# None where sockets do not say, or take, the local address of a datagram.
IPV6_PKTINFO: int | None = getattr(socket, "IPV6_PKTINFO", None)
IPV6_RECVPKTINFO: int | None = getattr(socket, "IPV6_RECVPKTINFO", None)
# Windows has no sendmsg and recvmsg: no control data, and no lists of buffers.
HAS_MESSAGES = hasattr(socket.socket, "sendmsg")
SEGMENTS_MAX = 64  # datagrams in one message; kernels take 128 since 6.9
SEGMENTED_MAX = 65507  # bytes in one message: 65,535 less the headers of IPv4 and UDP
LIMITS_MAX = 1024  # addresses for which an Outbox remembers the size of runs

_SEGMENT = struct.Struct("=H")
_PKTINFO4 = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo
_WILDCARDS = {socket.IPPROTO_IP: "0.0.0.0", socket.IPPROTO_IPV6: "::"}
_TELLS_LOCAL = (
    (socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.size),
    (socket.IPPROTO_IPV6, IPV6_PKTINFO, _PKTINFO6.size),
)
_FAMILIES = {socket.IPPROTO_IP: socket.AF_INET, socket.IPPROTO_IPV6: socket.AF_INET6}

Control: TypeAlias = "tuple[int, int, bytes]"
Item: TypeAlias = "tuple[Any, Any, Sequence[Control]]"  # payload, address, control data


class Local(NamedTuple):
    """Where a datagram arrived, or is to leave from."""

    host: str
    """The local address, numeric, from which an answer can leave.

    For a datagram to an IPv4 broadcast or multicast address, it is the interface's address. The
    wildcard ("0.0.0.0", "::" or "") means not known, or left to the kernel; it is always that for a
    datagram to an IPv6 multicast address.
    """
    interface: int = 0
    """The interface's index, see socket.if_indextoname; 0: not known, or left to the kernel."""


Datagram: TypeAlias = "tuple[bytes, Any]"
LocalDatagram: TypeAlias = "tuple[bytes, Any, Local]"


# typed: 9.0 equals 9, but is no port.
@functools.lru_cache(maxsize=1024, typed=True)
def is_numeric(family: int, *address: Any) -> bool:
    """Whether an address needs no name resolution: inet_pton, which is strict, takes its host."""
    if not 2 <= len(address) <= 4 or type(address[0]) is not str or type(address[1]) is not int:
        return False
    try:
        return bool(socket.inet_pton(family, address[0]))
    except (OSError, ValueError):  # ValueError: a zero byte
        return False


# -- control data


def local_option(family: int) -> int:
    """The kind of the control data with the local address of a datagram.

    Raises:
        OSError: ENOPROTOOPT: this platform has none.
    """
    option = IP_PKTINFO if family == socket.AF_INET else IPV6_PKTINFO
    if option is None or not HAS_MESSAGES:
        raise OSError(errno.ENOPROTOOPT, "this platform has no local addresses of datagrams")
    return option


def segment_control(size: int) -> Control:
    """Control data that asks for datagrams of `size` bytes."""
    return SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(size)


@functools.lru_cache(maxsize=1024, typed=True)
def local_control(family: int, host: str, interface: int) -> tuple[Control]:
    """Control data that asks for a datagram to leave from `host`.

    `interface` counts only if `host` does not determine the way, because it is a wildcard or
    link-local. An answer tied to the interface on which the question came would be lost if the
    route back is another.

    Raises:
        ValueError: `host` is not an address of this family, or `interface` is not an index.
        OSError: ENOPROTOOPT: this platform takes no local address.
    """
    level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
    option = local_option(family)
    try:
        packed = socket.inet_pton(_FAMILIES[level], host or _WILDCARDS[level])
        ambiguous = not any(packed) or ipaddress.ip_address(packed).is_link_local
        index = operator.index(interface) * ambiguous
        if level == socket.IPPROTO_IP:
            return ((level, option, _PKTINFO4.pack(index, packed, bytes(4))),)
        return ((level, option, _PKTINFO6.pack(packed, index)),)
    except (OSError, TypeError, struct.error):
        wanted = f"a numeric {_FAMILIES[level].name} address and an interface's index"
        raise ValueError(f"local must be {wanted}, not {host!r} and {interface!r}") from None


def read_control(ancillary: Iterable[Control]) -> tuple[int, Local | None]:
    """Reads the size of joined datagrams (0: not given), and where the message arrived."""
    segment, local = 0, None
    for level, kind, data in ancillary:
        if level == SOL_UDP and kind == UDP_GRO and len(data) >= 4:
            segment = int.from_bytes(data[:4], "little")
        elif (level, kind, len(data)) in _TELLS_LOCAL:
            local = _unpack_local(level, data)
    return segment, local


@functools.lru_cache(maxsize=1024)
def _unpack_local(level: int, data: bytes) -> Local:
    if level == socket.IPPROTO_IP:
        interface, packed, destination = _PKTINFO4.unpack(data)
        if not any(packed) and destination[0] < 0xE0:  # not multicast, and arrived before we asked
            packed = destination
    else:
        packed, interface = _PKTINFO6.unpack(data)
        if packed[0] == 0xFF:
            packed = bytes(16)
    return Local(socket.inet_ntop(_FAMILIES[level], packed), interface)


# -- sending


# One message for the kernel, a datagram or a run of them: buffers, control data, address, bytes of
# each datagram of a run (0: there is only one), number of datagrams. A plain tuple, since one is
# made for each message.
Outgoing: TypeAlias = "tuple[Sequence[Any], Sequence[Control], Any, int, int]"


class Outbox:
    """Datagrams to be sent, in order, and the messages that they become.

    A run that was refused is sent one by one. Only if all of its datagrams are taken that way was
    it segmentation that the route or the device does not support.

    Args:
        items: (payload, address, control data) for each datagram.
        segment_max: bytes of the largest datagram that may be part of a run; 0: no runs.
        limits: the same for each address, as far as this and earlier Outboxes have found out.

    Attributes:
        at: how many datagrams have been sent.
    """

    __slots__ = ("_alone", "_refused", "at", "items", "limits", "segment_max")

    def __init__(self, items: Sequence[Item], segment_max: int, limits: dict[Any, int]) -> None:
        self.items = items
        self.segment_max = segment_max
        self.limits = limits
        self.at = 0
        self._alone = 0  # datagrams before this index are sent one by one
        self._refused: tuple[Any, int] | None = None

    def messages(self, most: int) -> Iterator[Outgoing]:
        """Yields the next messages. Asking for another means that the last one has been sent."""
        items, end, limits = self.items, len(self.items), self.limits
        for _ in range(most):
            start = self.at
            if start == end:
                return
            payload, address, control = items[start]
            size, stop = len(payload), start + 1
            if stop < end and size and items[stop][1] == address and start >= self._alone:
                limit = limits.get(address, self.segment_max) if limits else self.segment_max
                if size <= limit:
                    longest = min(SEGMENTS_MAX, SEGMENTED_MAX // size)
                    stop = _end_of_run(items, start, min(end, start + longest))
            if stop == start + 1:
                yield (payload,), control, address, 0, 1
            else:  # a copy costs less than an address for each datagram
                joined = (b"".join([item[0] for item in items[start:stop]]),)
                control = (*control, segment_control(size))
                yield joined, control, address, size, stop - start
            self.at = stop
            if self._refused is not None and stop >= self._alone:
                self._learn(*self._refused)

    def refused(self, run: Outgoing, limit: int) -> None:
        """The kernel refused this run. `limit`: for its address, if it takes the datagrams
        alone."""
        _, _, address, _, datagrams = run
        self._refused, self._alone = (address, limit), self.at + datagrams

    def _learn(self, address: Any, limit: int) -> None:
        if len(self.limits) >= LIMITS_MAX:
            self.limits.clear()
        self.limits[address] = limit
        self._refused = None


def _end_of_run(items: Sequence[Item], start: int, limit: int) -> int:
    payload, address, control = items[start]
    size = len(payload)
    stop = start + 1
    while stop < limit:
        other, to, told = items[stop]
        if len(other) != size or to != address or told != control:
            if 0 < len(other) < size and to == address and told == control:
                return stop + 1  # a shorter one ends the run
            break
        stop += 1
    return stop


# -- receiving


class Inbox:
    """Received messages, and how far their datagrams have been given out.

    Attributes:
        datagrams: how many are left.
    """

    __slots__ = ("_at", "_messages", "datagrams")

    def __init__(self) -> None:
        self.datagrams = 0
        self._messages: deque[tuple[bytes, int, Any, Local | None]] = deque()
        self._at = 0  # bytes of the first message that were given out

    def put(self, data: bytes, segment: int, address: Any, local: Local | None) -> None:
        """Adds a message; `segment` and `local` as in read_control."""
        if segment:
            self.datagrams += max(1, -(-len(data) // segment))
        else:
            self.datagrams += 1
        self._messages.append((data, segment, address, local))

    def take(self, most: int, local: bool) -> list[Any]:
        """Takes up to `most` datagrams, in order: as LocalDatagram if `local`, else as Datagram."""
        taken: list[Any] = []
        messages = self._messages
        while messages and most > 0:
            data, segment, address, source = messages[0]
            start, stop = self._at, len(data)
            if not segment:
                segment = stop or 1
            elif stop - start > most * segment:
                stop = start + most * segment
            payloads = [data[at : at + segment] for at in range(start, stop, segment)]
            if not stop:
                payloads = [data]  # an empty datagram counts, too
            if local:
                told = Local("") if source is None else source
                taken += [(payload, address, told) for payload in payloads]
            else:
                taken += [(payload, address) for payload in payloads]
            most -= len(payloads)
            self._at = stop
            if stop == len(data):
                messages.popleft()
                self._at = 0
        self.datagrams -= len(taken)
        return taken
