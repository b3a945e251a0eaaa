"""The exceptions of this package, and the one table from the kernel's errnos to them.

Rules of this file: standard library and trio's exception classes only. Every errno that reaches a
user goes through here, so that a message says what happened and what to do about it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import trio

# These mean that the stream's own descriptor is gone. Any other errno on a stream means that the
# connection is broken.
CLOSED_ERRNOS = frozenset({errno.EBADF, errno.ENOTSOCK})

# These mean "try again", and are never an error of the stream.
AGAIN_ERRNOS = frozenset({errno.EAGAIN, errno.EINTR})


class RingUnavailableError(OSError):
    """io_uring is asked for and not available. `errno` and the message say why and what to do."""


class RingBrokenError(OSError):
    """A ring that worked has failed, and every operation on it fails.

    It is seen when a sandbox begins to forbid io_uring_enter.
    """


class CommandError(Exception):
    """A command of `python -m trio_uring` cannot do what it is asked for; the text says why.

    Attributes:
        status: the exit status.
    """

    status = 1


class WorkersError(RuntimeError):
    """serve_workers gave up, or a worker had to be killed at the end; the text says why.

    Attributes:
        status: an exit status for it. 2: main cannot be loaded, so trying again is of no use; else
            1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class IncompleteReadError(EOFError):
    """The stream ended before the bytes that were asked for had come.

    The bytes that did come are not lost: they are in `partial`, and the stream's next receive
    returns them.

    Attributes:
        partial: the bytes that came before the end.
        expected: how many bytes were asked for; None: everything up to a delimiter.
    """

    def __init__(self, partial: bytes, expected: int | None = None) -> None:
        wanted = (
            "bytes, before the delimiter"
            if expected is None
            else f"of the {expected} bytes asked for"
        )
        super().__init__(f"the stream ended after {len(partial)} {wanted}")
        self.partial = partial
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.partial, self.expected)


class DelimiterNotFound(ValueError):
    """The peer's line is longer than allowed. Its bytes stay in the stream.

    Attributes:
        delimiter: the bytes searched for.
        max_bytes: how many bytes were searched.
    """

    def __init__(self, delimiter: bytes, max_bytes: int) -> None:
        super().__init__(f"the delimiter {delimiter!r} is not in the first {max_bytes} bytes")
        self.delimiter = delimiter
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delimiter, self.max_bytes)


def stream_error(
    code: int,
    *,
    of_socket: bool = True,
) -> trio.BrokenResourceError | trio.ClosedResourceError:
    """The trio exception for errno `code` on a stream, in trio's words, with its OSError as cause.

    Args:
        code: the errno.
        of_socket: whether the stream is on a socket.
    """
    cause = OSError(code, os.strerror(code))
    if code in CLOSED_ERRNOS:
        closed = "socket" if of_socket else "file"
        return trio.ClosedResourceError(f"this {closed} was already closed")
    broken = "socket connection" if of_socket else "connection"
    error = trio.BrokenResourceError(f"{broken} broken: {cause}")
    error.__cause__ = cause
    return error


_REASONS = {
    errno.ENOSYS: "this kernel has no io_uring (it came with Linux 5.1), or a sandbox hides it",
    errno.EPERM: "io_uring is forbidden here: by a seccomp profile (Docker and Kubernetes forbid "
    "it by default) or by the sysctl kernel.io_uring_disabled",
    errno.EACCES: "io_uring is forbidden here by a security module",
    errno.EOPNOTSUPP: "this platform answers that io_uring is not supported",
    errno.ENOMEM: "locked memory is used up: raise RLIMIT_MEMLOCK (ulimit -l), 512 KiB are enough "
    "for a ring",
    errno.EMFILE: "this process is at its limit of open files: raise RLIMIT_NOFILE (ulimit -n)",
    errno.ENFILE: "the system is at its limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "the limit of processes is reached: raise RLIMIT_NPROC (ulimit -u)",
    errno.EINVAL: "this kernel refuses even a ring without flags: it is too old",
}


def why_unavailable(code: int, what: str) -> str:
    """A sentence for the user: what failed, why, and what to change."""
    reason = _REASONS.get(code, "no io_uring ring can be had")
    if code == errno.EPERM:
        reason = _who_forbids() or reason
    elif code == errno.ENOMEM:
        limit = _address_space()
        if limit is not None:
            kib = f"which is {limit // 1024} KiB"
            reason = f"memory is used up: raise RLIMIT_AS (ulimit -v), {kib}; or {reason}"
    return f"{what} failed with {errno.errorcode.get(code, code)}: {reason}"


def _who_forbids() -> str | None:
    try:
        with open("/proc/sys/kernel/io_uring_disabled", "rb") as sysctl:
            setting = sysctl.read().strip().decode()
    except OSError:
        return None
    if setting in ("1", "2"):
        sysctl_is = f"kernel.io_uring_disabled={setting}"
        return f"io_uring is forbidden by the sysctl {sysctl_is}; 0 allows it"
    if setting != "0":
        return None
    by = "a seccomp profile (Docker and Kubernetes do so by default)"
    return f"io_uring is forbidden by {by}; the sysctl allows it"


def _address_space() -> int | None:
    """Bytes that this process may map; None: there is no limit, or it is unknown."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
