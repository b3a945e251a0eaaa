"""The exceptions of this package, and the one table from the kernel's errnos to them.

Rules of this file: standard library and trio's exception classes only. Every errno that reaches a
user goes through here, so that a message says what happened and what to do about it.
"""

from __future__ import annotations

import errno
import os
import re
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
    errno.EMFILE: "this process is at its limit of open files: raise RLIMIT_NOFILE (ulimit -n)",
    errno.ENFILE: "the system is at its limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "the limit of processes is reached: raise RLIMIT_NPROC (ulimit -u)",
    errno.EINVAL: "this kernel is new enough and refuses it all the same: a seccomp filter answers "
    "in its place, or a sandbox emulates it",
}


_CAP_IPC_LOCK = 14  # its bit in CapEff
_NO_MEMORY = {
    "locked": "locked memory is used up: raise RLIMIT_MEMLOCK (ulimit -l), 512 KiB are enough for "
    "a ring",
    "any": "memory is used up: that of the control group (memory.max), or of the whole machine",
}


_FIRST_RELEASE = (5, 11)
_TOO_OLD = {errno.EINVAL: "this kernel is too old: io_uring is used from Linux 5.11 on"}


def why_unavailable(code: int, what: str, *, locked: bool = True) -> str:
    """A sentence for the user: what failed, why, and what to change.

    Args:
        code: the errno.
        what: what failed.
        locked: whether it needs memory that some kernels count as locked, as a ring does.
    """
    reason = _REASONS.get(code, "no io_uring ring can be had")
    if code == errno.EPERM:
        reason = _who_forbids() or reason
    elif code == errno.ENOMEM:
        reason = _whose_memory(locked)
    elif kernel_number(_release()) < _FIRST_RELEASE:
        reason = _TOO_OLD.get(code, reason)
    return f"{what} failed with {errno.errorcode.get(code, code)}: {reason}"


def kernel_number(release: str) -> tuple[int, int]:
    """(6, 1) of "6.1.0-13-amd64"; (0, 0): it is not known."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def locks_rings(release: str) -> bool:
    """Whether a kernel counts the memory of rings against RLIMIT_MEMLOCK.

    Linux 5.12 ended that, and 6.14 has it again, for whoever lacks CAP_IPC_LOCK.
    """
    return not (5, 12) <= kernel_number(release) < (6, 14)


def lifts_memlock() -> bool:
    """Whether this process has CAP_IPC_LOCK where that counts: in the first user namespace."""
    try:
        with open("/proc/self/uid_map", "rb") as uids, open("/proc/self/status", "rb") as status:
            effective = re.search(rb"^CapEff:\s*([0-9a-f]+)$", status.read(), re.M)
            first = uids.read().split() == [b"0", b"0", b"4294967295"]
    except OSError:
        return False
    return first and effective is not None and bool(int(effective[1], 16) >> _CAP_IPC_LOCK & 1)


def _whose_memory(locked: bool) -> str:
    limited = _limit("RLIMIT_MEMLOCK") is not None and not lifts_memlock()
    limited = locked and limited and locks_rings(_release())
    reason = _NO_MEMORY["locked" if limited else "any"]
    space = _limit("RLIMIT_AS")
    if space is None:
        return reason
    kib = f"which is {space // 1024} KiB"
    return f"the address space is used up: raise RLIMIT_AS (ulimit -v), {kib}; or {reason}"


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


def _release() -> str:
    if sys.platform == "win32":
        return ""
    return os.uname().release


def _limit(which: str) -> int | None:
    """The soft limit, in bytes; None: there is none, or it is unknown."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(getattr(resource, which))[0]
    return None if limit == resource.RLIM_INFINITY else limit
