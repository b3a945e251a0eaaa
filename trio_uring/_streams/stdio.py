"""The standard streams of this process, as streams.

A process may be started without one of them (`prog >&-`, some daemons and services). Its number
then goes to whatever the program opens first, so the number says nothing. But Python looked when it
started, and set `sys.__stdout__` to None; that is what we check.

Rules of this file: the descriptors 0, 1 and 2 are shared with other processes (the shell, the rest
of a pipeline). Their flags are never changed, and they are never closed: a stream here uses its own
duplicate, or the terminal opened anew. Even a socket is used as a plain descriptor, since a trio
socket would set O_NONBLOCK.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys

from .endpoint import Descriptor, make_over
from .streams import ReceiveStream, SendStream

# The device number of a pseudo-terminal's master; opening it makes a new pseudo-terminal.
_PTMX = 5 << 8 | 2


def open_stdin() -> ReceiveStream:
    """Opens standard input (descriptor 0) as a stream.

    It may be a terminal, a pipe, a file, a socket or /dev/null. A file is read from its current
    position. What Python's `sys.stdin` has read ahead is not seen here, so use one or the other.
    Closing the stream leaves descriptor 0 open. On a terminal, a receive returns a line, and Ctrl-D
    is the end of the stream.

    Raises:
        OSError: this process was started without standard input, or has closed it (EBADF); or it is
            a directory (EISDIR).
        RuntimeError: this is Windows, where nothing but a socket can be waited for.

    Cancellation: a blocked read can be cancelled, also on a terminal, and loses nothing.
    """
    return make_over(ReceiveStream, _duplicate(0, sys.__stdin__, "standard input"))


def open_stdout() -> SendStream:
    """Opens standard output (descriptor 1) as a stream.

    It may be a terminal, a pipe, a file, a socket or /dev/null. Nothing is buffered; to keep the
    order, call `sys.stdout.flush()` after printing. Closing the stream leaves descriptor 1 open, so
    a reader at the other end of a pipe sees the end only when this process ends.

    Raises:
        OSError: this process was started without standard output, or has closed it (EBADF); or it
            is a directory (EISDIR).
        RuntimeError: this is Windows, where nothing but a socket can be waited for.

    Cancellation: as in SendStream, except on a terminal that may not be opened anew (another
    user's, after su): while it takes no more (Ctrl-S), a write blocks the whole program, as print()
    does.
    """
    return make_over(SendStream, _duplicate(1, sys.__stdout__, "standard output"))


def open_stderr() -> SendStream:
    """Opens standard error (descriptor 2) as a stream; otherwise like open_stdout."""
    return make_over(SendStream, _duplicate(2, sys.__stderr__, "standard error"))


def _duplicate(fd: int, at_start: object, name: str) -> Descriptor:
    if sys.platform == "win32":
        raise RuntimeError(f"on Windows, {name} cannot be a stream: use a thread")
    if at_start is None:
        why = f"this process was started without {name}: descriptor {fd}, if any, is another file"
        raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {why}")
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, f"descriptor {fd} is a directory")
    if os.isatty(fd) and status.st_rdev != _PTMX:
        with contextlib.suppress(OSError):
            return Descriptor(_reopen(fd))
    return Descriptor(os.dup(fd))


def _reopen(fd: int) -> int:
    """Opens the same terminal anew, so that it can be non-blocking for us alone.

    The kernel treats a terminal as a file whose writes need not wait, and then waits after all: a
    write of more than there is room for would block io_uring_enter, and with it every task.
    """
    if sys.platform == "win32":
        raise AssertionError
    import fcntl  # Windows has none, but must be able to import this module

    access = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
    name = f"/proc/self/fd/{fd}" if sys.platform == "linux" else os.ttyname(fd)
    return os.open(name, access | os.O_NONBLOCK | os.O_NOCTTY)
