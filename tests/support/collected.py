"""Garbage whose finalizer closes a socket, and points at which it may be collected.

Rules of this file: a number that becomes free is taken by a stranger at once, whom nobody may read.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .enters import Seam


class Cyclic:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


class Garbage:
    """Collected when `collect` is called; then its finalizer closes a socket.

    As soon as the socket's number is free, a stranger has it, with something to read.
    """

    def __init__(self, sock: Any) -> None:
        self.number = sock.fileno()
        self.collected = False
        self.strangers: list[socket.socket] = []
        self._real_close = sock.lease._close
        sock.lease._close = self._close
        weakref.finalize(Cyclic(), self._finalize, sock)

    def collect(self) -> None:
        if not self.collected:
            gc.collect()
            assert self.collected

    def _finalize(self, sock: Any) -> None:
        self.collected = True
        sock.close()

    def _close(self) -> None:
        self._real_close()
        while self.number not in [sock.fileno() for sock in self.strangers]:
            for sock in socket.socketpair():
                sock.send(b"x")
                self.strangers.append(sock)

    def check(self) -> None:
        """The socket was closed, and nobody has read the strangers'."""
        assert self.strangers
        for sock in self.strangers:
            assert sock.recv(10, socket.MSG_DONTWAIT) == b"x"
        for sock in self.strangers:
            sock.close()


class Collector(Seam):
    """Calls a function in front of what enters or drains the ring."""

    def __init__(self, before: dict[str, Callable[[], object]]) -> None:
        super().__init__()
        self.before = before
        self.armed = self.fatal = False

    def _call(self, name: str) -> None:
        if self.armed and name in self.before:
            self.before[name]()

    def enter(self, *arguments: Any) -> int:
        self._call("enter")
        return -errno.EBADF if self.fatal else super().enter(*arguments)

    def turn(self, c: Any, least: int, flags: int, seconds: float, out: Any, most: int) -> int:
        self._call("turn")
        if not self.fatal:
            return super().turn(c, least, flags, seconds, out, most)
        out[1] = -errno.EBADF
        return self.drain(c, out, most)


@contextlib.contextmanager
def hooked(owner: Any, name: str, hook: Callable[[], object]) -> Iterator[None]:
    """Calls `hook` before each call of a function."""
    real = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        hook()
        return real(*arguments)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, real)
