"""The pipes that splice(2) needs between two descriptors.

The copies of a run share them, and hold one only while there are bytes in it.

Rules of this file: a pipe in the pool is empty. If no pipe is available (no descriptors, no pipe
memory), that is not an error: the copy then uses buffers. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._descriptors.direction import Direction
    from .._ring.protocol import Ring

PIPE_SIZE = 2**18  # bytes that a copy moves at a time, and holds while its sink takes nothing
# Pipes of one run at the same time: 128 descriptors, and 16 MiB, a quarter of the pipe memory that
# Linux allows a user.
PIPES_MAX = 64
IDLE_MAX = 4  # pipes kept open while unused

SPLICE_NOW = 2 | 1  # SPLICE_F_NONBLOCK, SPLICE_F_MOVE


class Pipe:
    """An empty pipe, or one with `held` bytes."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.held = 0
        if sys.platform != "linux":  # nobody asks for a pipe there
            raise AssertionError
        import fcntl  # the package is also imported where there is none

        with contextlib.suppress(OSError):  # the default of 64 KiB will do
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def fill(self, fd: int, count: int) -> int:
        """Moves up to `count` bytes from `fd` into the pipe, and returns how many; 0 at the end.

        Raises OSError, including BlockingIOError.
        """
        if sys.platform != "linux":
            raise AssertionError
        self.held = os.splice(fd, self._write, min(count, PIPE_SIZE), flags=SPLICE_NOW)
        return self.held

    def empty(self, fd: int) -> int:
        """Moves what `fd` takes now out of the pipe, and returns how many bytes.

        Raises OSError, including BlockingIOError.
        """
        if sys.platform != "linux":
            raise AssertionError
        count = os.splice(self._read, fd, self.held, flags=SPLICE_NOW)
        self.held -= count
        return count

    def read(self) -> bytes:
        """Reads and returns the bytes that are not to be passed on."""
        parts = []
        while self.held:
            parts.append(os.read(self._read, self.held))
            self.held -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Pipes:
    """The pipes of one run."""

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self.count = 0  # pipes that are open

    def take(self) -> Pipe | None:
        if self._idle:
            return self._idle.pop()
        if self.count == PIPES_MAX:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.count += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        if pipe.held or len(self._idle) == IDLE_MAX:
            pipe.close()
            self.count -= 1
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
            self.count -= 1


_of_engines: weakref.WeakKeyDictionary[Any, Pipes] = weakref.WeakKeyDictionary()


def pipes(engine: Any) -> Pipes:
    """Returns the pipes of an engine's run, which are closed with it."""
    found = _of_engines.get(engine)
    if found is None:
        found = _of_engines[engine] = Pipes()
        engine.at_end.append(found.close)
    return found


def takes_splices(ring: Ring, way: Direction) -> bool:
    """Whether splice(2) and sendfile(2) on this descriptor can neither block the thread nor kill
    the process.

    They have no MSG_NOSIGNAL; Python ignores SIGPIPE unless the program changes that. Sockets must
    be non-blocking, as trio's are. For pipes, splice has its own flag; devices may block all the
    same.
    """
    if ring.info.backend == "fake" or sys.platform != "linux" or not hasattr(os, "splice"):
        return False
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_IGN:
        return False
    if way.is_socket:
        return not os.get_blocking(way.fd)
    return stat.S_ISFIFO(os.fstat(way.fd).st_mode)
