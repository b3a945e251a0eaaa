"""`python -m trio_uring info`: what this machine's io_uring can do, and how trio_uring uses it.

Rules of this file: it opens rings and closes them. It never fails: what cannot be read is reported
as unknown.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from .. import __version__
from .._accelerator import why_not
from .._bytes.outgoing import IOV_MAX, SEND_MAX, VECTOR_BYTES_MAX
from .._descriptors.provided import OWN_SIZE
from .._driver.backend import open_uring
from .._driver.run import backend_info, check_variables
from .._errors import RingUnavailableError
from .._ring.figures import LARGE_COUNT, LARGE_SIZE, POOL_SIZE, SMALL_COUNT, SMALL_SIZE, SQ_ENTRIES
from .._ring.setup import SQ_ENTRIES_MIN
from .._trio import NAMES
from .process import describe_process
from .text import entry

if TYPE_CHECKING:
    import argparse

# IORING_FEAT_* (linux/io_uring.h), in the order of their bits in io_uring_setup's answer.
FEATURE_NAMES = (
    "SINGLE_MMAP", "NODROP", "SUBMIT_STABLE", "RW_CUR_POS", "CUR_PERSONALITY", "FAST_POLL",
    "POLL_32BITS", "SQPOLL_NONFIXED", "EXT_ARG", "NATIVE_WORKERS", "RSRC_TAGS", "CQE_SKIP",
    "LINKED_FILE", "REG_REG_RING", "RECVSEND_BUNDLE", "MIN_TIMEOUT", "RW_ATTR", "NO_IOWAIT",
)  # fmt: skip

_SYSCTL = "/proc/sys/kernel/io_uring_disabled"
_SYSCTL_MEANINGS = {
    "0": "every process may use io_uring",
    "1": "only privileged processes and the group kernel.io_uring_group may use io_uring",
    "2": "nobody may use io_uring",
}
_MEANINGS = {  # of what was asked for, where it is not io_uring
    "auto": "nobody asked for that: an enabled run says so once in its log, as a WARNING",
    "off": "an enabled run is trio's own; what is used of trio_uring by name waits by readiness",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pid", type=int, metavar="N", help="instead: whether the process N has a ring open"
    )


def run(arguments: argparse.Namespace) -> int:
    lines = describe() if arguments.pid is None else describe_process(arguments.pid)
    print("\n".join(lines))
    return 0


def describe() -> list[str]:
    """The lines that `info` prints."""
    return [
        *_describe_machine(),
        "",
        *_describe_backend(),
        *_describe_ring(),
        "",
        "limits",
        *_describe_limits(),
        "",
        "private names of trio that are used",
        *_describe_names(),
    ]


def _describe_machine() -> list[str]:
    return [
        *entry("trio_uring", __version__),
        *entry("kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        *entry("accelerator", "in use" if why_not is None else f"none: {why_not}"),
        *entry("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        *entry("trio, cffi", f"{_version('trio')}, {_version('cffi')}"),
        *entry("kernel.io_uring_disabled", _sysctl()),
        *entry("RLIMIT_MEMLOCK", _limit("RLIMIT_MEMLOCK", 1024, " KiB")),
        *entry("RLIMIT_NOFILE", _limit("RLIMIT_NOFILE", 1, " descriptors")),
    ]


def _describe_backend() -> list[str]:
    try:
        check_variables()
        chosen = backend_info()
    except (RingUnavailableError, ValueError) as exc:
        return entry("backend", f"none: {exc}")
    if chosen.reason is None:
        return entry("backend", "io_uring" if chosen.backend == "uring" else chosen.backend)
    return [
        *entry("backend", f"{chosen.backend}: {chosen.reason}"),
        *(entry("", _MEANINGS[chosen.requested]) if chosen.requested in _MEANINGS else []),
    ]


def _describe_ring() -> list[str]:
    try:
        ring, untested = open_uring()
    except RingUnavailableError as exc:
        return entry("io_uring", f"not available: {exc.strerror}")
    except Exception as exc:
        return entry("io_uring", f"not known: {type(exc).__name__}: {exc}")
    info = ring.info
    ring.close()
    if info.provided_buffers:
        receives = "into provided buffers"
    else:
        receives = (
            f"into {OWN_SIZE} bytes of their own: this kernel has no provided-buffer rings "
            "(Linux 5.19 and newer have them)"
        )
    return [
        *entry("io_uring", "available"),
        *(entry("  not tested", untested) if untested else []),
        *entry("  setup flags", " ".join(info.setup_flags) or "none"),
        *entry("  features", " ".join(feature_names(info.features))),
        *entry("  opcodes used", " ".join(info.opcodes)),
        *entry("  opcodes lacking", " ".join(info.lacking) or "none"),
        *entry("  submission queue", f"{info.sq_entries} entries"),
        *entry("  completion queue", f"{info.cq_entries} entries"),
        *entry("  receives", receives),
    ]


def feature_names(bits: int) -> list[str]:
    """The names of the IORING_FEAT_* bits. Bits without a name in this version are given as a
    number."""
    names = [name for bit, name in enumerate(FEATURE_NAMES) if bits >> bit & 1]
    unknown = bits >> len(FEATURE_NAMES) << len(FEATURE_NAMES)
    return [*names, f"{unknown:#x}"] if unknown else names


def _describe_names() -> list[str]:
    """Every private name of trio's that is used, and what is lost without those that are
    missing."""
    lines = [f"  found    {private.name}" for private in NAMES if private.found]
    for private in NAMES:
        if not private.found:
            lines += [f"  MISSING  {private.name}", f"           without it: {private.lost}"]
    return lines


def _describe_limits() -> list[str]:
    pool = POOL_SIZE // 1024
    limits = [
        (
            "SQ_ENTRIES",
            f"{SQ_ENTRIES} operations for each io_uring_enter; more are flushed earlier",
        ),
        (
            "SQ_ENTRIES_MIN",
            f"{SQ_ENTRIES_MIN} operations: the least it settles for where RLIMIT_MEMLOCK is small",
        ),
        (
            "SMALL_SIZE, SMALL_COUNT",
            f"{SMALL_SIZE} bytes, {SMALL_COUNT} buffers for small messages",
        ),
        ("LARGE_SIZE, LARGE_COUNT", f"{LARGE_SIZE} bytes, {LARGE_COUNT} buffers for bulk"),
        ("memory of all buffers", f"{pool} KiB for each trio.run, however many streams it has"),
        ("IOV_MAX", f"{IOV_MAX} buffers in one operation; send_all takes any number"),
        (
            "VECTOR_BYTES_MAX",
            f"{VECTOR_BYTES_MAX} bytes, after which an operation takes no more buffers",
        ),
        ("SEND_MAX, RECEIVE_MAX", f"{SEND_MAX} bytes in one operation; send_all takes any size"),
    ]
    return [line for name, text in limits for line in entry("  " + name, text)]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _sysctl() -> str:
    try:
        with open(_SYSCTL, encoding="ascii") as file:
            value = file.read().strip()
    except OSError:
        return "unknown: this kernel does not have it (Linux 6.6 has), or it cannot be read"
    return f"{value} ({_SYSCTL_MEANINGS.get(value, 'unknown to this version')})"


def _limit(which: str, unit: int, name: str) -> str:
    if sys.platform == "win32":
        return "unknown: this platform has no such limits"
    import resource

    soft, _ = resource.getrlimit(getattr(resource, which))
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // unit}{name}"
