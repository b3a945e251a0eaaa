"""Datagrams and what the kernel makes of them: runs that are sent as one (GSO), and what it received in one piece (GRO).

Linux splits a large message into datagrams of one size, the last of which may be shorter, when it is sent with UDP_SEGMENT
(4.18); and it joins datagrams of one sender in the same way for a socket with UDP_GRO (5.0).

Rules of this file: no socket, no task. A datagram's payload is bytes, or a memoryview of bytes.
"""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ._addresses import unpack_address
from ._ancillary import unpack_control
from ._op import SHOT_CONTROL, SHOT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableSequence, Sequence

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104  # linux/udp.h; Python has no names for them
SEGMENTS_MAX = 64  # datagrams in one message; kernels have taken 128 since 6.9
SEGMENTED_MAX = 65507  # bytes in one message: 65,535 less the headers of IPv4 and UDP
CONTROL_MAX = 128  # bytes of control data received: room for the size of the segments beside what the user may have asked for
MSG_TRUNC = 0x20

Datagram: TypeAlias = "tuple[bytes, Any]"

_SEGMENT = struct.Struct("=H")
_SHOT = struct.Struct("=IIII")  # lengths of address, control data and payload; flags
_SHOT_PAYLOAD = SHOT_CONTROL + CONTROL_MAX

# The same peers come again and again.
unpack_name = functools.lru_cache(maxsize=1024)(unpack_address)


def segment_control(size: int) -> list[tuple[int, int, bytes]]:
    """Control data, as of socket.socket.sendmsg, that asks for datagrams of `size` bytes; 0: none."""
    return [(SOL_UDP, UDP_SEGMENT, _SEGMENT.pack(size))] if size else []


class Outgoing(NamedTuple):
    """One message for the kernel: a datagram, or a run of them."""

    payload: Any
    address: Any
    segment: int  # bytes of each datagram of a run; 0: there is only one
    datagrams: int


def coalesce(items: Sequence[tuple[Any, Any]], start: int, segment_max: int) -> Iterator[Outgoing]:
    """Makes messages of the (payload, address) in `items` from `start` on, in order.

    Args:
        segment_max: bytes of the largest datagram that may be part of a run; 0: no runs.
    """
    end = len(items)
    while start < end:
        payload, address = items[start]
        size = len(payload)
        stop = start + 1
        if 0 < size <= segment_max:
            stop = _end_of_run(items, start, min(end, start + SEGMENTS_MAX, start + SEGMENTED_MAX // size))
        if stop == start + 1:
            yield Outgoing(payload, address, 0, 1)
        else:  # a copy costs less than an address for each
            yield Outgoing(b"".join([item[0] for item in items[start:stop]]), address, size, stop - start)
        start = stop


def _end_of_run(items: Sequence[tuple[Any, Any]], start: int, limit: int) -> int:
    payload, address = items[start]
    size = len(payload)
    stop = start + 1
    while stop < limit:
        other, to = items[stop]
        if len(other) != size or to != address:
            if 0 < len(other) < size and to == address:  # a shorter one ends the run
                return stop + 1
            break
        stop += 1
    return stop


def segment_size(control: bytes) -> int:
    """The size of the datagrams that a received message was joined from; 0: it is one datagram."""
    return segment_of(unpack_control(control)) if control else 0


def segment_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """As segment_size, of what socket.socket.recvmsg gives."""
    for level, kind, data in ancillary:
        if level == SOL_UDP and kind == UDP_GRO and len(data) >= 4:
            return int.from_bytes(data[:4], "little")
    return 0


def split(data: bytes, start: int, segment: int, address: Any) -> list[Datagram]:
    """The datagrams in `data` from `start` on."""
    if not segment or len(data) - start <= segment:
        return [(data[start:], address)]
    return [(data[at : at + segment], address) for at in range(start, len(data), segment)]


def parse_shots(shots: Sequence[bytes], into: MutableSequence[Datagram]) -> int:
    """Puts what the shots of a multishot RECVMSG with CONTROL_MAX wrote into `into`; returns the MSG_* flags of all."""
    seen = 0
    for shot in shots:
        name_length, control_length, _, flags = _SHOT.unpack_from(shot)
        address = unpack_name(shot[SHOT_NAME : SHOT_NAME + name_length])
        seen |= flags
        if control_length:
            segment = segment_size(shot[SHOT_CONTROL : SHOT_CONTROL + control_length])
            into.extend(split(shot, _SHOT_PAYLOAD, segment, address))
        else:
            into.append((shot[_SHOT_PAYLOAD:], address))
    return seen
