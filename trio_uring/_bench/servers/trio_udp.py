"""The modes `udp` and `udp-many` of trio's family: every datagram goes back to where it came from.

Rules of this file: one datagram a call in the mode `udp`. In the mode `udp-many` trio does the
same, because it has nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

import trio

ADDRESS = ("127.0.0.1", 0)
DATAGRAM_BYTES_MAX = 65_507


async def echo_by_hand(sock: Any) -> None:
    while True:
        payload, address = await sock.recvfrom(DATAGRAM_BYTES_MAX)
        await sock.sendto(payload, address)


async def echo(udp: Any) -> None:
    while True:
        payload, address = await udp.receive_from()
        await udp.send_to(payload, address)


async def echo_many(udp: Any) -> None:
    while True:
        await udp.send_many(await udp.receive_many())


async def serve(nursery: trio.Nursery, library: str, mode: str, count: int, size: int) -> int:
    """Returns the port."""
    if library == "trio_uring":
        udp = await importlib.import_module(library).open_udp_socket(local_address=ADDRESS)
        nursery.start_soon(echo_many if mode == "udp-many" else echo, udp)
        port: int = udp.getsockname()[1]
        return port
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sock.bind(ADDRESS)
    nursery.start_soon(echo_by_hand, sock)
    port = sock.getsockname()[1]
    return port
