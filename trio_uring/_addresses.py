"""Socket addresses: Python's tuples and paths to the kernel's struct sockaddr, and back.

For IPv4, IPv6 and Unix sockets, in the form that the socket module has them.

Rules of this file: standard library only. Names are not resolved: hosts are numeric here.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})

_UNIX_PATH_MAX = 108  # bytes of sun_path


def pack_address(family: int, address: Any) -> bytes:
    """A numeric address as the kernel wants it: struct sockaddr_in, sockaddr_in6 or sockaddr_un.

    Raises:
        OSError, OverflowError, TypeError: as the socket module would for it.
    """
    if family == socket.AF_INET:
        host, port = address
        return struct.pack("=HH4s8x", family, socket.htons(_port(port)), socket.inet_aton(host))
    if family == socket.AF_INET6:
        host, port, *rest = address
        flow, scope = (*rest, 0, 0)[:2]
        if not 0 <= flow <= 0xFFFFF:
            raise OverflowError("flowinfo must be 0-1048575.")
        packed, scope_id = _pack_host(host)
        return struct.pack("=HHI16sI", family, socket.htons(_port(port)), socket.htonl(flow), packed, scope or scope_id)
    if family == socket.AF_UNIX:
        path = os.fsencode(address)
        if path and not path.startswith(b"\0"):
            path += b"\0"  # an abstract name begins with a zero byte, and has no terminator
        if len(path) > _UNIX_PATH_MAX:
            raise OSError("AF_UNIX path too long: at most 107 bytes")
        return struct.pack("=H", family) + path
    raise OSError(f"cannot use addresses of family {family}")


def _port(port: int) -> int:
    if not 0 <= port <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    return port


def _pack_host(host: str) -> tuple[bytes, int]:
    address, _, zone = host.partition("%")
    packed = socket.inet_pton(socket.AF_INET6, address)
    return packed, 0 if not zone else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def unpack_address(name: bytes) -> Any:
    """What the kernel wrote, in the form that the socket module gives it; None for no address."""
    if len(name) < 2:
        return None
    family = int.from_bytes(name[:2], "little")
    if family == socket.AF_INET:
        port, packed = struct.unpack_from("=H4s", name, 2)
        return socket.inet_ntoa(packed), socket.ntohs(port)
    if family == socket.AF_INET6:
        port, flow, packed, scope = struct.unpack_from("=HI16sI", name, 2)
        return socket.inet_ntop(family, packed), socket.ntohs(port), socket.ntohl(flow), scope
    path = name[2:]
    if path.startswith(b"\0"):
        return path  # an abstract name, which is bytes
    return os.fsdecode(path.partition(b"\0")[0])
