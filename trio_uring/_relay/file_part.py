"""A file to be sent: which file objects are accepted, and which part is still to be sent.

Rules of this file: the file is used through our own descriptor, so that the caller may close theirs
at any time. Every position is ours and explicit.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import stat
import sys
from typing import Any

import trio

from .pipes import SPLICE_NOW

_NOT_THIS_WAY = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EIO}
)
_probe = bytearray(1)


def synchronous(file: Any) -> Any:
    """Returns the file object inside an asynchronous one, such as trio.open_file's or anyio's."""
    if not inspect.iscoroutinefunction(getattr(file, "seek", None)):
        return file
    wrapped = getattr(file, "wrapped", None)
    if wrapped is None:
        raise TypeError(f"send_file takes no {type(file).__name__}: give it a descriptor")
    return wrapped


def open_file(file: Any) -> io.FileIO:
    """Opens the file through our own descriptor."""
    _check_kind(file)
    try:
        fd = file if isinstance(file, int) else file.fileno()
    except (AttributeError, io.UnsupportedOperation):
        raise TypeError(
            f"send_file takes a file with a descriptor, or a descriptor, not {type(file).__name__}"
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ValueError("send_file takes a regular file; copy_stream is for what has no positions")
    return io.FileIO(os.dup(fd), "rb")


def _check_kind(file: Any) -> None:
    """Raises TypeError or ValueError unless this file object's bytes are those of its
    descriptor."""
    inner = file
    while isinstance(inner, (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)):
        inner = inner.raw
    if isinstance(inner, io.IOBase) and not isinstance(inner, (io.FileIO, io.TextIOBase)):
        import tempfile

        if not isinstance(inner, tempfile.SpooledTemporaryFile):
            raise TypeError(
                "send_file sends what is in a file, which need not be what a "
                f"{type(inner).__name__} gives: read that and use send_all, or give send_file the "
                "descriptor"
            )
    mode = getattr(inner, "mode", "b")
    if isinstance(inner, io.TextIOBase) or (isinstance(mode, str) and "b" not in mode):
        raise ValueError("send_file takes a file opened in binary mode")


class Part:
    """The part of a file that is still to be sent.

    Attributes:
        fd: the file's descriptor.
        offset: the position of the next byte, in bytes.
        left: bytes still to be sent; None: to the end of the file.
        ended: nothing is left to be sent.
        direct: sendfile(2) and splice(2) have not been refused yet.
    """

    def __init__(self, file: io.FileIO, offset: int, count: int | None) -> None:
        self.file = file
        self.fd = file.fileno()
        self.offset = offset
        self.left = count
        self.ended = count == 0
        self.direct = os.fstat(self.fd).st_size > 0  # 0: a file as in /proc

    def close(self) -> None:
        self.file.close()

    def size(self, limit: int) -> int:
        return limit if self.left is None else min(limit, self.left)

    def passed(self, count: int) -> None:
        self.offset += count
        if self.left is not None:
            self.left -= count
            self.ended = not self.left

    def in_cache(self, size: int) -> bool:
        """Whether both ends of the next `size` bytes are in memory.

        What lies between was read ahead with them, as a rule.
        """
        if sys.platform != "linux":  # elsewhere nothing is sent directly
            raise AssertionError
        try:
            if os.preadv(self.fd, [_probe], self.offset, os.RWF_NOWAIT):
                os.preadv(self.fd, [_probe], self.offset + size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # this file system cannot tell
            self.direct = False
            return False
        return True

    def give(self, sink: int, is_socket: bool, size: int) -> int | None:
        """Sends as much of the next `size` bytes as a descriptor takes now, without copying.

        Args:
            sink: a socket's or a pipe's descriptor.
            is_socket: whether it is a socket.
            size: bytes.

        Returns:
            How many bytes were sent; None: it cannot be done this way. If fewer than `size`, the
            sink is full, or the file has ended and `ended` is true.

        Raises:
            OSError: an error of the sink, including BlockingIOError.
        """
        if sys.platform != "linux":
            raise AssertionError
        try:
            if is_socket:
                count = os.sendfile(sink, self.fd, self.offset, size)
            else:
                count = os.splice(self.fd, sink, size, offset_src=self.offset, flags=SPLICE_NOW)
        except OSError as exc:
            if exc.errno not in _NOT_THIS_WAY:
                raise
            self.direct = False
            return None
        self.passed(count)
        self.ended = self.ended or not count or self.offset >= os.fstat(self.fd).st_size
        return count


async def pread(fd: int, size: int, offset: int) -> bytes:
    """os.pread, in a worker thread if it would have to wait."""
    if sys.platform == "linux" and hasattr(os, "RWF_NOWAIT"):
        chunk = bytearray(size)
        with contextlib.suppress(OSError):
            return bytes(memoryview(chunk)[: os.preadv(fd, [chunk], offset, os.RWF_NOWAIT)])
    return await trio.to_thread.run_sync(_pread, fd, size, offset)


def _pread(fd: int, size: int, offset: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(fd, size, offset)
    # The position is the caller's as well, who may not use it meanwhile.
    before = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)
    finally:
        os.lseek(fd, before, os.SEEK_SET)
