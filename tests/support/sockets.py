"""What the socket tests share: two libraries that must behave alike, kinds of connected sockets,
errors.

Rules: a test with `library` runs over trio.socket and over trio_uring.socket, and does not know
which. The test's `sockets` stack closes every socket that a helper makes.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import trio_uring.socket

from .streams import clog, clog_tcp

LIBRARIES = {"trio": trio.socket, "ours": trio_uring.socket}
STREAMS = ("tcp", "tcp6", "unix")
DATAGRAMS = ("udp", "udp6", "unix-dgram")
MESSAGES = (*DATAGRAMS, "seqpacket")
KINDS = (*STREAMS, *MESSAGES)

on_both = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
of_kind = pytest.mark.parametrize("kind", KINDS)
of_streams = pytest.mark.parametrize("kind", STREAMS)
of_messages = pytest.mark.parametrize("kind", MESSAGES)

_LOCAL = {"tcp": "127.0.0.1", "udp": "127.0.0.1", "tcp6": "::1", "udp6": "::1"}


def family_and_type(kind: str) -> tuple[int, int]:
    family = {"6": socket.AF_INET6, "p": socket.AF_INET}.get(kind[-1], socket.AF_UNIX)
    if kind == "seqpacket":
        return socket.AF_UNIX, socket.SOCK_SEQPACKET
    return family, socket.SOCK_STREAM if kind in STREAMS else socket.SOCK_DGRAM


def stdlib_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    family, what = family_and_type(kind)
    if family == socket.AF_UNIX:
        return socket.socketpair(family, what)
    left, right = socket.socket(family, what), socket.socket(family, what)
    right.bind((_LOCAL[kind], 0))
    if what == socket.SOCK_STREAM:
        right.listen()
        left.connect(right.getsockname())
        with right:
            return left, right.accept()[0]
    left.bind((_LOCAL[kind], 0))
    left.connect(right.getsockname())
    right.connect(left.getsockname())
    return left, right


class Sockets(contextlib.ExitStack):
    """Makes sockets of one library, and closes them at its end."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.library = library

    def __enter__(self) -> Sockets:
        return self

    def take(self, sock: Any) -> Any:
        made = self.library.from_stdlib_socket(sock) if isinstance(sock, socket.socket) else sock
        self.callback(made.close)
        return made

    def pair(self, kind: str) -> tuple[Any, Any]:
        left, right = stdlib_pair(kind)
        return self.take(left), self.take(right)

    def new(self, kind: str) -> Any:
        return self.take(self.library.socket(*family_and_type(kind)))

    async def bound(self, kind: str) -> Any:
        """With an address of its own."""
        sock = self.new(kind)
        if kind in _LOCAL:
            await sock.bind((_LOCAL[kind], 0))
        else:
            await sock.bind(str(Path(self.enter_context(tempfile.TemporaryDirectory())) / "socket"))
        return sock


def clog_sender(sender: Any, receiver: Any) -> None:
    """Sends until no more is taken, nor will be before the receiver receives."""
    if sender.family in (socket.AF_INET, socket.AF_INET6) and sender.type == socket.SOCK_STREAM:
        clog_tcp((sender, receiver))
    else:
        clog(sender.fileno())


def told(exc: BaseException) -> tuple[type[BaseException], object]:
    """What of an error must be alike: its type and errno."""
    return type(exc), getattr(exc, "errno", None)
