"""Control data of messages: the socket module's (level, type, data) to the kernel's struct cmsghdr, and back.

Rules of this file: standard library only. A received descriptor belongs to whoever unpacks it.
"""

from __future__ import annotations

import operator
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

_HEADER = struct.Struct("=Qii")  # struct cmsghdr on 64-bit Linux: length, level, type
_ALIGN = 8


def pack_control(ancdata: Iterable[tuple[int, int, Buffer]]) -> bytes:
    """As sendmsg takes it, in the kernel's format.

    Raises:
        TypeError, ValueError, OverflowError: as the socket module would for it.
    """
    packed = bytearray()
    for level, kind, data in ancdata:
        with memoryview(data) as view:
            payload = view.tobytes()
        level, kind = operator.index(level), operator.index(kind)
        if not -(2**31) <= min(level, kind) <= max(level, kind) < 2**31:
            raise OverflowError("level and type of control data do not fit into a C int")
        packed += _HEADER.pack(_HEADER.size + len(payload), level, kind) + payload
        packed += bytes(-len(packed) % _ALIGN)
    return bytes(packed)


def unpack_control(control: bytes) -> list[tuple[int, int, bytes]]:
    """As recvmsg gives it. What was cut is given as far as it goes."""
    found, at = [], 0
    while at + _HEADER.size <= len(control):
        length, level, kind = _HEADER.unpack_from(control, at)
        if length < _HEADER.size:
            break
        found.append((level, kind, control[at + _HEADER.size : at + length]))
        at += length + -length % _ALIGN
    return found


def close_descriptors(control: bytes) -> None:
    """Closes the descriptors in control data that nobody is left to receive."""
    for level, kind, data in unpack_control(control):
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for (fd,) in struct.iter_unpack("=i", data[: len(data) // 4 * 4]):
                os.close(fd)
