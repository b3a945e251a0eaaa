"""What the tests of copies share: two connections with a copy between them, and their outer ends.

Rules: the ends are plain sockets or descriptors outside the ring, or streams that a test reads and
writes itself.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_uring
from trio_uring._relay.pipes import pipes

from .streams import closing, fifo_descriptors, tcp_sockets, unix_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pumps_only = pytest.mark.uring_only("where nothing completes by itself, a copy is a loop")


def pipes_open() -> int:
    """Those that copies have, or keep to use them again. Loops have none."""
    engine = trio_uring._driver.run.current_driver().engine
    return pipes(engine).count if engine.pumps else 0


def taken(direction: Any) -> bool:
    """Whether a stream's `_sending` or `_receiving` is: a direction, or another stream's flag."""
    return bool(getattr(direction, "held", direction))


BOUND = 2**18  # bytes that a copy may hold

KINDS = ["tcp", "unix", "pipe", "fifo"]


class Line:
    """`near` -> source ... sink -> `far`: what is written to the descriptor `near` reaches the
    descriptor `far` by a copy."""

    def __init__(self, kind: str, buffer: int | None = None) -> None:
        if kind in ("tcp", "unix"):
            make: Any = tcp_sockets if kind == "tcp" else unix_sockets
            (self.near, source), (sink, self.far) = make(buffer), make(buffer)
            self.source: Any = trio_uring.SocketStream(source)
            self.sink: Any = trio_uring.SocketStream(sink)
        else:
            make = os.pipe if kind == "pipe" else fifo_descriptors
            (source, near), (far, sink) = make(), make()
            self.near, self.far = Plain(near), Plain(far)
            self.source, self.sink = trio_uring.ReceiveStream(source), trio_uring.SendStream(sink)
        self.near.setblocking(False)
        self.far.setblocking(False)

    async def write(self, data: bytes) -> None:
        """Writes it all, giving the scheduler passes while there is no room, and ends."""
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[self.near.send(view[:65536]) :]
            await trio.lowlevel.checkpoint()

    def end(self) -> None:
        self.near.close()

    def read(self) -> bytes:
        """What has come out by now."""
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := self.far.recv(2**20):
                parts.append(part)
        return b"".join(parts)

    async def read_exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            with contextlib.suppress(BlockingIOError):
                part = self.far.recv(count - len(got))
                assert part, f"the end came after {len(got)} bytes"
                got += part
            await trio.lowlevel.checkpoint()
        return got


class Plain:
    """A descriptor with the few methods of a socket that the tests use."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self.fd, flag)

    def send(self, data: Any) -> int:
        return os.write(self.fd, data)

    def recv(self, count: int) -> bytes:
        return os.read(self.fd, count)

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.asynccontextmanager
async def line(kind: str = "unix", buffer: int | None = None) -> AsyncIterator[Line]:
    made = Line(kind, buffer)
    async with closing(made.source, made.sink):
        try:
            yield made
        finally:
            made.near.close()
            made.far.close()
