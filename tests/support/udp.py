"""What the UDP tests share.

Rules: everything is on loopback, where what fits into the receiver's buffer arrives, in order.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import trio_uring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
BUFFER = 4 << 20  # bytes of receive buffer asked for; the system may give less


async def opened(family: int = socket.AF_INET, **options: Any) -> trio_uring.UDPSocket:
    """A socket bound to loopback."""
    sock = await trio_uring.open_udp_socket(
        local_address=(HOSTS[socket.AddressFamily(family)], 0), **options
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    return sock


@contextlib.asynccontextmanager
async def udp_pair(
    family: int = socket.AF_INET, **options: Any
) -> AsyncIterator[tuple[trio_uring.UDPSocket, trio_uring.UDPSocket]]:
    """(one connected to the other, the other, which is not connected)."""
    async with await opened(family, **options) as receiver:
        async with await trio_uring.open_udp_socket(
            remote_address=receiver.getsockname()[:2], **options
        ) as sender:
            yield sender, receiver


def plain_sender(to: trio_uring.UDPSocket) -> socket.socket:
    """A socket of the standard library that is connected to `to`."""
    sock = socket.socket(to.socket.family, socket.SOCK_DGRAM)
    sock.connect(to.getsockname())
    return sock


class Spy:
    """In the place of a UDPSocket's plain socket: notes the calls that send and receive."""

    def __init__(self, sock: trio_uring.UDPSocket) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._plain = sock._plain
        sock._plain = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._plain, name)

        def call(*args: Any) -> Any:
            self.calls.append((name, *args))
            return method(*args)

        return call


async def receive_payloads(sock: trio_uring.UDPSocket, count: int) -> list[bytes]:
    """The payloads of the next `count` datagrams."""
    got: list[bytes] = []
    while len(got) < count:
        got += [payload for payload, _ in await sock.receive_many(count - len(got), timeout=20)]
    return got
