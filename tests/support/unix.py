"""What the tests of Unix listeners share."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from trio_uring import SocketListener, open_unix_listeners, open_unix_socket

if TYPE_CHECKING:
    from pathlib import Path


def bound(path: Path, kind: int = socket.SOCK_STREAM, listen: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if listen:
        sock.listen()
    return sock


async def open_one(path: Any, **options: Any) -> SocketListener:
    [listener] = await open_unix_listeners(path, **options)
    return listener


async def check_it_serves(listener: SocketListener, path: Any) -> None:
    client = await open_unix_socket(path)
    server = await listener.accept()
    async with client, server:
        await client.send_all(b"hello")
        assert await server.receive_exactly(5) == b"hello"
