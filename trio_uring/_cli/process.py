"""`python -m trio_uring info --pid N`: whether another process works with io_uring.

Rules of this file: it reads /proc/N and nothing else, so it changes nothing in that process. What
cannot be known from there is said to be unknown, in words; a guess is called one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import CommandError
from .text import entry

if TYPE_CHECKING:
    from collections.abc import Iterator

RING = "anon_inode:[io_uring]"
_PROC = Path("/proc")
_VARIABLES = "TRIO_URING_"
_EXTENSION = "/trio_uring/_uring."  # and abi3.so, or the name of one Python's own ABI
_RINGS = (
    "It may belong to another library than trio_uring, and in a forked child it may be its parent's"
)
_NO_RING = (
    "no trio.run of it has used io_uring yet, or none is going on, or it waits by readiness, or it "
    "does not use trio_uring at all. Which one of these, and why, only the process itself knows: "
    "its log (logger trio_uring), trio_uring.backend_info() in the run, or the metric "
    "trio_uring_driver_backend_info"
)


class UnknownProcessError(CommandError):
    """Nothing can be read of that process; the text says why."""


def describe_process(pid: int) -> list[str]:
    """The lines that `info --pid` prints.

    Raises:
        UnknownProcessError: there is no such process, it has ended, or its descriptors may not be
            read.
    """
    if _has_ended(pid):
        raise UnknownProcessError(
            f"the process {pid} has ended, and its parent has not collected its exit status yet"
        )
    rings = _rings(pid)
    return [
        *entry("process", f"{pid}: {_command(pid)}"),
        *entry("io_uring", _verdict(rings)),
        *[line for fd in rings for line in entry(f"  descriptor {fd}", _describe_ring(pid, fd))],
        *entry("C extension", _extension(pid)),
        *entry("variables at its start", _variables(pid)),
    ]


def _verdict(rings: list[int]) -> str:
    if not rings:
        return f"no ring is open: {_NO_RING}"
    return f"{len(rings)} ring{'s are' if len(rings) > 1 else ' is'} open. {_RINGS}"


def _rings(pid: int) -> list[int]:
    """The descriptors that are rings."""
    folder = _PROC / str(pid) / "fd"
    try:
        names = sorted(map(int, os.listdir(folder)))
    except (FileNotFoundError, ProcessLookupError):
        if not (_PROC / "self").exists():
            raise UnknownProcessError("there is no /proc here that tells of processes") from None
        raise UnknownProcessError(f"there is no process with the number {pid}") from None
    except OSError as exc:
        reason = errno.errorcode.get(exc.errno or 0, exc.errno)
        raise UnknownProcessError(
            f"{folder} cannot be read ({reason}): that takes the same user, or root, in the same "
            "container"
        ) from exc
    return [fd for fd in names if _link(folder / str(fd)) == RING]


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""


def _read(pid: int, name: str) -> str | None:
    try:
        return (_PROC / str(pid) / name).read_bytes().decode(errors="replace")
    except OSError:
        return None


def _has_ended(pid: int) -> bool:
    """A zombie has a folder, in which it looks as if it did nothing."""
    _, _, fields = (_read(pid, "stat") or "").rpartition(")")  # the name before it may have spaces
    return fields.split()[:1] in (["Z"], ["X"])


def _command(pid: int) -> str:
    return _printable(_read(pid, "cmdline") or "") or "its command is unknown"


def _printable(text: str) -> str:
    """In one line, and without what would control a terminal: another process wrote it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _describe_ring(pid: int, fd: int) -> str:
    """What fdinfo has of its queues, which is not the same in all kernels."""
    found = dict(_fields(_read(pid, f"fdinfo/{fd}") or ""))
    try:
        sq, cq, submitted, completed = (
            int(found[name], 0) for name in ("SqMask", "CqMask", "SqTail", "CqTail")
        )
    except (KeyError, ValueError):
        return "this kernel tells no more of it"
    return (
        f"queues of {sq + 1} and {cq + 1} entries; {submitted} operations submitted and "
        f"{completed} completed (both modulo 2**32)"
    )


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _extension(pid: int) -> str:
    maps = _read(pid, "maps")
    if maps is None:
        return "unknown: its memory map may not be read"
    if _EXTENSION in maps:
        return "trio_uring's is loaded"
    return "trio_uring's is not loaded, so no ring can be trio_uring's"


def _variables(pid: int) -> str:
    whole = _read(pid, "environ")
    if whole is None:
        return "unknown: its environment may not be read"
    ours = sorted(each for each in whole.split("\0") if each.startswith(_VARIABLES))
    return (
        _printable(" ".join(ours)) or "none of trio_uring's"
    ) + " (what it set later is not seen)"
