"""Opens the kernel's ring: tries setup flags in turn, checks features, provides buffers.

Rules of this file: it knows no operation. `open_ring` returns a complete ring, or leaves nothing
behind. Numbers are those of linux/io_uring.h.
"""

from __future__ import annotations

import enum
import errno
import time
from typing import Any, NamedTuple

from .._errors import RingUnavailableError, why_unavailable
from .extension import ffi, lib
from .figures import LARGE_COUNT, LARGE_SIZE, POOL_SIZE, SMALL_COUNT, SMALL_SIZE, RingInfo
from .op import LARGE_GROUP, SMALL_GROUP
from .opcodes import Opcode


class Setup(enum.IntFlag):
    """IORING_SETUP_*."""

    CQSIZE, CLAMP, SUBMIT_ALL = 1 << 3, 1 << 4, 1 << 7  # 5.5, 5.6, 5.18
    R_DISABLED = 1 << 6  # 5.10
    COOP_TASKRUN, TASKRUN_FLAG = 1 << 8, 1 << 9  # 5.19
    SINGLE_ISSUER, DEFER_TASKRUN = 1 << 12, 1 << 13  # 6.0, 6.1


class Feature(enum.IntFlag):
    """IORING_FEAT_*: those without which a ring is useless."""

    NODROP, SUBMIT_STABLE, FAST_POLL, EXT_ARG = 1 << 1, 1 << 2, 1 << 5, 1 << 8  # 5.5 to 5.11


_BASE = Setup.CQSIZE | Setup.CLAMP
_MODERN = _BASE | Setup.SUBMIT_ALL | Setup.TASKRUN_FLAG
_COOP = _MODERN | Setup.COOP_TASKRUN
_COOP_LADDER = (_COOP | Setup.SINGLE_ISSUER, _COOP, _BASE | Setup.SUBMIT_ALL, _BASE, 0)
# Best first. If a kernel does not know a flag, it answers EINVAL, and the next step is tried.
_LADDERS: dict[str, tuple[int, ...]] = {
    # Completions wait until we enter. This is for a thread that waits in the ring itself: a thread
    # that sleeps in epoll_wait would not be woken.
    "defer": (_MODERN | Setup.DEFER_TASKRUN | Setup.SINGLE_ISSUER, *_COOP_LADDER),
    "coop": _COOP_LADDER,
    "plain": (_BASE, 0),
}

SQ_ENTRIES_MIN = 16
# Completions (16 bytes each) per submission slot: enough for a pass of thousands of connections.
_CQ_FACTOR = 16
# The kernel gives back the locked memory of closed rings with some delay.
_TRIES, _TRY_SECONDS = 10, 0.02

_OPCODES = 256  # that the kernel's probe may list


class Opened(NamedTuple):
    """An open ring of the kernel."""

    c: Any
    """The extension's struct tu_ring."""
    fd: int
    info: RingInfo
    buffers: ProvidedBuffers


def open_ring(
    flags: str, sq_entries: int, cq_entries: int | None, provide_buffers: bool, restrict: bool
) -> Opened:
    """Opens a ring; the arguments are those of UringRing.

    Everything is registered before the ring is restricted: afterwards it takes nothing more.

    Raises:
        RingUnavailableError: the kernel opens none, or its rings lack something that is required.
    """
    c, found = _walk_down(flags, sq_entries, cq_entries, int(Setup.R_DISABLED) if restrict else 0)
    buffers = ProvidedBuffers()
    try:
        lacking = _lacking(c, found.features)
        provided = provide_buffers and buffers.register(c)
        if restrict:
            _restrict(found.fd, lacking)
        info = RingInfo(
            backend="uring",
            setup_flags=tuple(
                name for name, bit in Setup.__members__.items() if found.setup_flags & bit
            ),
            features=found.features,
            sq_entries=found.sq_entries,
            cq_entries=found.cq_entries,
            opcodes=tuple(opcode.name for opcode in Opcode if opcode not in lacking),
            provided_buffers=provided,
            lacking=tuple(opcode.name for opcode in lacking),
            restricted=restrict,
        )
    except BaseException:
        lib.tu_close(c)
        buffers.free()
        raise
    return Opened(c, found.fd, info, buffers)


def _walk_down(flags: str, sq_entries: int, cq_entries: int | None, always: int) -> tuple[Any, Any]:
    """Tries setup flags, fewer after each EINVAL, and sizes, smaller after each ENOMEM.

    `always`: flags that no attempt goes without.

    ENOMEM is the answer when RLIMIT_MEMLOCK is reached, on kernels that count rings against it.
    """
    out, found = ffi.new("tu_ring **"), ffi.new("struct tu_info *")
    result, patience = -errno.EINVAL, _TRIES
    for setup_flags in _LADDERS[flags]:
        entries = sq_entries
        while True:
            wanted = entries * _CQ_FACTOR if cq_entries is None else cq_entries
            result = _open(out, entries, wanted, setup_flags | always, found)
            if result != -errno.ENOMEM:
                break
            if entries > SQ_ENTRIES_MIN:
                entries //= 2
            elif patience:
                patience -= 1
                time.sleep(_TRY_SECONDS)
            else:
                break
        if result == 0:
            return out[0], found
        if result != -errno.EINVAL:
            break
    raise RingUnavailableError(-result, why_unavailable(-result, "io_uring_setup"))


def _open(out: Any, *arguments: Any) -> int:
    """Calls tu_open. A KeyboardInterrupt that came meanwhile leaves no ring behind."""
    try:
        return int(lib.tu_open(out, *arguments))
    except BaseException:
        if out[0] != ffi.NULL:
            lib.tu_close(out[0])
        raise


def _lacking(c: Any, features: int) -> list[Opcode]:
    """The opcodes that this kernel lacks. Raises if a required one, or a feature, is missing."""
    missing = sum(Feature) & ~features
    if missing:
        why = f"this kernel's io_uring lacks features {missing:#x}; Linux 5.11 or newer has them"
        raise RingUnavailableError(errno.EOPNOTSUPP, why)
    probe = ffi.new("uint8_t[]", _OPCODES)
    result = lib.tu_probe(c, probe, _OPCODES)
    if result < 0:
        raise RingUnavailableError(-result, why_unavailable(-result, "the opcode probe"))
    lacking = [opcode for opcode in Opcode if not probe[opcode]]
    required = [
        f"{opcode.name} (Linux {opcode.since} has it)" for opcode in lacking if opcode.required
    ]
    if required:
        why = f"this kernel's io_uring lacks {', '.join(required)}"
        raise RingUnavailableError(errno.EOPNOTSUPP, why)
    return lacking


def _restrict(fd: int, lacking: list[Opcode]) -> None:
    """Enables the ring, for the opcodes that this package uses and no others. Raises if the kernel
    does not restrict it."""
    allowed = bytes(opcode for opcode in Opcode if opcode not in lacking)
    result = lib.tu_restrict(fd, allowed, len(allowed))
    if result < 0:
        raise RingUnavailableError(
            -result, why_unavailable(-result, "a restricted ring is asked for, and restricting it")
        )


class ProvidedBuffers:
    """The memory of a ring's two groups of buffers, which the kernel fills.

    Attributes:
        memory: a slice of it is bytes. It is one object for as long as the ring is open: slicing it
            costs 0.2 us, making a new ffi.buffer each time would cost four times that.
        starts: where in it the buffer of each id begins, in bytes. The ids of the large buffers
            follow those of the small ones.
    """

    def __init__(self) -> None:
        self.memory: Any = b""
        self.starts: list[int] = []
        self.at: Any = ffi.NULL

    def register(self, c: Any) -> bool:
        """Registers the groups. False before Linux 5.19: receives then bring their own memory."""
        at = self.at = lib.tu_pool_alloc(POOL_SIZE)
        if at == ffi.NULL:
            raise RingUnavailableError(
                errno.ENOMEM, why_unavailable(errno.ENOMEM, "the buffer pool", locked=False)
            )
        if lib.tu_buffers(c, SMALL_GROUP, 0, SMALL_COUNT, SMALL_SIZE, at) < 0:
            self.free()  # nobody would ever use it
            return False
        self.memory = ffi.buffer(at, POOL_SIZE)
        smalls = SMALL_COUNT * SMALL_SIZE
        self.starts = [
            *range(0, smalls, SMALL_SIZE),
            *range(smalls, smalls + LARGE_COUNT * LARGE_SIZE, LARGE_SIZE),
        ]
        large = lib.tu_buffers(c, LARGE_GROUP, SMALL_COUNT, LARGE_COUNT, LARGE_SIZE, at + smalls)
        return bool(large >= 0)

    def free(self) -> None:
        """Frees the memory, once the ring is closed or if it does not use it."""
        at, self.at = self.at, ffi.NULL
        if at != ffi.NULL:
            lib.tu_pool_free(at, POOL_SIZE)
