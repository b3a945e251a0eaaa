"""The kernel's ring: operations go in as entries, and come back as completions.

Rules of this file. Above it there is no address, no cdata and no token; below it (C) there is no
decision. How objects become addresses is in _ring/entries.py.

S1  Every address in an entry belongs to an object that the operation pins (an exported buffer can
    be neither resized nor freed), and the operation is in the ring's table from its entry being
    written to its last completion. A coroutine's frame is no pin: coro.close() drops it.
S2  A ring with anything in flight is reachable from this module (`_open_rings`).
S3  Pins are released on one line, in `_collect`.
S4  Tokens (user_data) come from a 62-bit counter and are never used twice. A cancel's own
    completion has its target's with the highest bit set. It proves nothing; only that the target
    was not found makes the cancel be asked for again.
S5  A descriptor is closed only when no operation leases it: `Operation.owner` keeps it open.
S6  Only the thread and the process that opened a ring touch it.
S7  A ring is closed with nothing in flight, or leaked loudly: closing the descriptor does not stop
    the kernel from writing to memory.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import importlib
import os
import threading
import time
import warnings
from collections import deque
from typing import Any

from .._errors import RingBrokenError, RingUnavailableError, why_unavailable
from .entries import make_entry, pin_vector
from .extension import ffi, lib
from .op import (
    CANCELLING,
    LARGE_GROUP,
    LINGERING,
    POSITION,
    SMALL_GROUP,
    SUBMITTED,
    Opcode,
    Operation,
)
from .protocol import (
    LARGE_COUNT,
    LARGE_SIZE,
    POOL_SIZE,
    SMALL_COUNT,
    SMALL_SIZE,
    SQ_ENTRIES,
    RingCounters,
    RingInfo,
)


class Setup(enum.IntFlag):
    """IORING_SETUP_* of linux/io_uring.h, as are the constants below."""

    CQSIZE, CLAMP, SUBMIT_ALL = 1 << 3, 1 << 4, 1 << 7  # 5.5, 5.6, 5.18
    COOP_TASKRUN, TASKRUN_FLAG = 1 << 8, 1 << 9  # 5.19
    SINGLE_ISSUER, DEFER_TASKRUN = 1 << 12, 1 << 13  # 6.0, 6.1


_FEAT_NODROP, _FEAT_SUBMIT_STABLE, _FEAT_FAST_POLL, _FEAT_EXT_ARG = (
    1 << 1,
    1 << 2,
    1 << 5,
    1 << 8,
)  # 5.5 to 5.11
_ENTER_GETEVENTS = 1 << 0
_CQE_F_BUFFER, _CQE_F_MORE = 1 << 0, 1 << 1

_BASE = Setup.CQSIZE | Setup.CLAMP
_MODERN = _BASE | Setup.SUBMIT_ALL | Setup.TASKRUN_FLAG
_COOP = _MODERN | Setup.COOP_TASKRUN
_COOP_LADDER = (_COOP | Setup.SINGLE_ISSUER, _COOP, _BASE | Setup.SUBMIT_ALL, _BASE, 0)
# Best first; a kernel that does not know a flag answers EINVAL and gets the next step.
LADDERS: dict[str, tuple[int, ...]] = {
    # Completions wait until we enter: for a thread that waits in the ring itself. They would not
    # wake one that sleeps in epoll_wait.
    "defer": (_MODERN | Setup.DEFER_TASKRUN | Setup.SINGLE_ISSUER, *_COOP_LADDER),
    "coop": _COOP_LADDER,
    "plain": (_BASE, 0),
}

SQ_ENTRIES_MIN = 16
# completions (16 bytes each) per submission slot: a pass of thousands of connections without
# overflow
CQ_FACTOR = 16
CANCELS_RESERVED = 8  # submission slots that only a cancel may take
DRAIN_MAX = 1024  # completions copied by one call

_REQUIRED_FEATURES = _FEAT_NODROP | _FEAT_SUBMIT_STABLE | _FEAT_FAST_POLL | _FEAT_EXT_ARG
_SHORT_OF = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM})
_PASSING = _SHORT_OF | {errno.EINTR, errno.ETIME}  # enter's answers that are no failure
# One enter runs 20 pieces of task work under DEFER_TASKRUN, or as many completions as it is to wait
# for.
_ALL = 1024
_FOREVER = 86400.0  # seconds: an enter that waits so long (trio asks for no more) has no timeout
_WATCH = (
    1 << 62
)  # the token of the watched descriptor; above it, as C's int64 below 0, are those of cancels
_TARGET = _WATCH - 1  # the bits of a cancel's token that are its target's

_open_rings: set[UringRing] = set()  # S2

# Looked up once: they are called for every operation.
_from_buffer, _tu_submit, _NULL = ffi.from_buffer, lib.tu_submit, ffi.NULL
_tu_turn, _tu_more = lib.tu_turn, lib.tu_more


class UringRing:
    """The kernel's ring, opened by the thread that uses it.

    Args:
        flags: which ladder of setup flags to walk down: "defer", "coop" or "plain".
        sq_entries: slots of the submission queue; a power of two.
        cq_entries: slots of the completion queue; None: CQ_FACTOR times sq_entries.
        provide_buffers: False does as a kernel before 5.19: receives bring their own memory.
    """

    def __init__(
        self,
        flags: str = "defer",
        sq_entries: int = SQ_ENTRIES,
        cq_entries: int | None = None,
        provide_buffers: bool = True,
    ) -> None:
        self.table: dict[int, Operation] = {}
        self.counters = RingCounters()
        self._submitted = self.counters.submitted
        self.now = 0.0
        self._thread = threading.get_ident()
        self._token = 0
        self._unsubmitted = 0
        self._late_cancels: deque[int] = deque()
        self._more_work = False  # the last turn has left task work, for the next one
        self._missed: list[int] = []  # targets that a cancel has not found
        self.watching = self.watched = self.short = False
        self._out = ffi.new("int64_t[]", 2 + 3 * DRAIN_MAX)
        self._view = memoryview(ffi.buffer(self._out)).cast("q")
        self._pool_memory: Any = ffi.NULL
        self._c: Any
        self._c, raw = _open(flags, sq_entries, cq_entries)
        self._fd: int = raw.fd
        self._entries: int = raw.sq_entries
        self._submit_max = self._entries - min(CANCELS_RESERVED, self._entries // 2)
        try:
            self.info = self._look(raw, provide_buffers)
        except BaseException:
            self._free()
            raise
        _open_rings.add(self)

    # -- setup

    def _look(self, raw: Any, provide_buffers: bool) -> RingInfo:
        """Finds out what this ring can do, and refuses one that lacks what we need."""
        missing = _REQUIRED_FEATURES & ~raw.features
        if missing:
            raise RingUnavailableError(
                errno.EOPNOTSUPP,
                f"this kernel's io_uring lacks features {missing:#x}; Linux 5.11 or newer has them",
            )
        probe = ffi.new("uint8_t[]", 256)
        result = lib.tu_probe(self._c, probe, 256)
        if result < 0:
            raise RingUnavailableError(-result, why_unavailable(-result, "the opcode probe"))
        lacking = [op for op in Opcode if not probe[op]]
        required = [f"{op.name} (Linux {op.since} has it)" for op in lacking if op.required]
        if required:
            why = f"this kernel's io_uring lacks {', '.join(required)}"
            raise RingUnavailableError(errno.EOPNOTSUPP, why)
        return RingInfo(
            backend="uring",
            setup_flags=tuple(
                name for name, bit in Setup.__members__.items() if raw.setup_flags & bit
            ),
            features=raw.features,
            sq_entries=raw.sq_entries,
            cq_entries=raw.cq_entries,
            opcodes=tuple(op.name for op in Opcode if op not in lacking),
            provided_buffers=provide_buffers and self._provide_buffers(),
            lacking=tuple(op.name for op in lacking),
        )

    def _provide_buffers(self) -> bool:
        """Registers the groups of buffers. False on kernels before 5.19: receives then bring their
        own memory."""
        large_start = SMALL_COUNT * SMALL_SIZE
        self._large_base = (
            large_start - SMALL_COUNT * LARGE_SIZE
        )  # the large buffers' ids go on from the small ones'
        memory = lib.tu_pool_alloc(POOL_SIZE)
        if memory == ffi.NULL:
            raise RingUnavailableError(
                errno.ENOMEM, why_unavailable(errno.ENOMEM, "the buffer pool")
            )
        self._pool_memory = memory
        if lib.tu_buffers(self._c, SMALL_GROUP, 0, SMALL_COUNT, SMALL_SIZE, memory) < 0:
            self._free_pool()  # nothing would ever use it
            return False
        # One long-lived buffer: a slice of it gives bytes in 0.2 us, a new ffi.buffer each time
        # costs four times that.
        self._pool = ffi.buffer(memory, POOL_SIZE)
        large = lib.tu_buffers(
            self._c, LARGE_GROUP, SMALL_COUNT, LARGE_COUNT, LARGE_SIZE, memory + large_start
        )
        return bool(large >= 0)

    def fileno(self) -> int:
        return self._fd

    # -- submission

    def submit(self, op: Operation) -> bool:
        if self._unsubmitted >= self._submit_max:
            self.counters.sq_full += 1
            return False
        before, state = op.state, op.state.submitted
        token = self._token = self._token + 1
        # From here on it is the ring's: a garbage collection while it is being written may destroy
        # its task's coroutine, and what is not in the kernel would be taken back, and its buffers
        # let go.
        op.token, op.state = token, state
        try:
            entry = op.entry or make_entry(op)
            # The kernel sees the entry at the next enter; a bad argument raises in here, with
            # nothing written.
            buffer = op.buffer
            if buffer is not None:
                op.pin = address = _from_buffer(buffer)
                _tu_submit(
                    self._c, entry, address + op.start if op.start else address, op.length, token
                )
            elif op.buffers is None:
                _tu_submit(self._c, entry, _NULL, op.length, token)
            else:
                address, length = pin_vector(op)
                _tu_submit(self._c, op.entry, address, length, token)
        except BaseException:
            op.state = before
            raise
        self.table[token] = op
        self._unsubmitted += 1
        op.born = self.now
        self._submitted[op.opcode] += 1
        return True

    def cancel(self, op: Operation) -> None:
        if op.state is not SUBMITTED:
            return
        op.state = op.state.cancelling
        self._late_cancels.append(op.token)
        self._write_cancels()

    def _write_cancels(self) -> None:
        while self._late_cancels and self._unsubmitted < self._entries:
            lib.tu_cancel(self._c, self._late_cancels.popleft())
            self._unsubmitted += 1
            self.counters.submitted[Opcode.ASYNC_CANCEL] += 1

    def watch(self, fd: int) -> bool:
        if self._unsubmitted >= self._submit_max:
            return False
        lib.tu_watch(self._c, fd, _WATCH)
        self._unsubmitted += 1
        self.watching = True
        return True

    def flush(self) -> bool:
        self._check_owner()
        self._write_cancels()
        while self._unsubmitted:
            if not self._enter():
                return False
            self._write_cancels()
        self.short = False
        return True

    def ready(self) -> bool:
        return self._unsubmitted > 0 or bool(self._late_cancels) or bool(_tu_more(self._c))

    def turn(self, timeout: float, done: list[Operation]) -> bool:
        if self._late_cancels:
            self._write_cancels()
            if (
                self._late_cancels
            ):  # more than there are slots: what a task does next must not come before any of them
                self.flush()
        if timeout > 0:
            least, timeout = 1, timeout if timeout < _FOREVER else -1.0
        elif self._unsubmitted or _tu_more(self._c):
            least, timeout = (_ALL, 0.0) if self._more_work else (0, -1.0)
        else:
            self.short = False
            return False
        self.counters.enters += 1
        count = _tu_turn(self._c, least, _ENTER_GETEVENTS, timeout, self._out, DRAIN_MAX)
        view = self._view
        if count:  # first of all: they are the caller's, whatever enter has answered
            self._collect(view[2 : 2 + 3 * count].tolist(), done)
        if self._unsubmitted and view[1] == self._unsubmitted:
            self._unsubmitted = 0
            self.short = False
        else:
            self._entered(view[1])
        more = view[0]
        self._more_work = bool(more & 2)
        if more & 5 or self._missed:
            return self.drain(done)
        return False

    def _entered(self, taken: int) -> bool:
        """Takes the answer of an io_uring_enter. False: the kernel is short of something for
        now."""
        if taken >= 0:
            self._unsubmitted -= taken
            self.short = not taken and self._unsubmitted > 0
            return not self.short
        self._unsubmitted = self._entries - lib.tu_sq_space(self._c)
        # EINTR: SIGSTOP and SIGCONT under load make it, and every signal. ETIME: the time to wait
        # is up.
        self.short = -taken in _SHORT_OF
        if -taken in _PASSING:
            return not self.short
        raise RingBrokenError(
            -taken,
            f"io_uring_enter failed with {errno.errorcode.get(-taken)}: {os.strerror(-taken)}",
        )

    def _enter(self) -> bool:
        """Enters, and does not wait. False: the kernel is short of something for now."""
        self.counters.enters += 1
        return self._entered(lib.tu_enter(self._c, 0, _ENTER_GETEVENTS, -1.0))

    def _check_owner(self) -> None:
        if self._c is None:
            raise RuntimeError(
                "this ring is closed, or belongs to the process that this one was forked from"
            )
        if self._thread != threading.get_ident():
            raise RuntimeError("this ring belongs to another thread")

    # -- completion

    def drain(self, done: list[Operation]) -> bool:
        self._check_owner()
        while True:
            count = lib.tu_drain(self._c, self._out, DRAIN_MAX)
            if count:
                self._collect(self._view[2 : 2 + 3 * count].tolist(), done)
            more = self._view[0]
            if more & 6:
                self.counters.cq_overflows += more >> 2
                if lib.tu_overflowed(self._c):
                    raise RingBrokenError(
                        errno.EBADR, "the kernel dropped completions for want of memory"
                    )
                if not self._enter() and not _tu_more(self._c) & 1:
                    # it is short of memory, and would be in a second attempt: the next pass asks
                    # again
                    break
            elif not more:
                break
        if self._missed:
            self._ask_again()
        return bool(self._late_cancels)

    def _ask_again(self) -> None:
        """A cancel that entered together with its target may miss it: its target is here still, and
        knows of nothing."""
        for target in self._missed:
            op = self.table.get(target)
            if op is not None and op.state is CANCELLING and not _is_of_file(op):
                self._late_cancels.append(target)
        self._missed.clear()

    def _collect(self, values: list[int], done: list[Operation]) -> None:
        table, moved = self.table, self.counters.moved
        self.counters.completions += len(values) // 3
        completions = iter(values)
        for token, res, flags in zip(completions, completions, completions):
            if token < 0 or token == _WATCH:
                self._take_own(token, res)
                continue
            if flags & _CQE_F_MORE:  # the kernel still holds the buffer
                op = table[token]
                op.state, op.res = op.state.lingering, res
                continue
            op = table.pop(token)
            done.append(op)  # at once: from here on it is the caller's, whatever happens
            if op.state is not LINGERING:
                op.res = res
            op.state = op.state.done
            op.pin = op.buffer = op.buffers = None  # S3
            if flags & _CQE_F_BUFFER:
                index = flags >> 16
                start = (
                    index * SMALL_SIZE
                    if index < SMALL_COUNT
                    else self._large_base + index * LARGE_SIZE
                )
                try:
                    op.chunk = self._pool[start : start + res]
                except (
                    MemoryError
                ):  # this stream's bytes are lost, and it is told so; the others go on
                    op.res = res = -errno.ENOMEM
            if res > 0:
                moved[op.opcode] += res
            elif res < 0:
                self.counters.count_failure(op, res)

    def _take_own(self, token: int, res: int) -> None:
        """A completion that is nobody's operation: a cancel's own, which proves nothing, or the
        watched descriptor's."""
        if token == _WATCH:
            self.watching, self.watched = False, True
        elif res == -errno.ENOENT:
            self._missed.append(token & _TARGET)

    # -- teardown

    def close(self) -> bool:
        if self._c is None:
            return True
        self._check_owner()
        if self.table:  # S7: the kernel may still write to what these operations pin
            _keep_for_ever(self)
            warnings.warn(
                f"trio_uring leaked a ring: the kernel did not give back {len(self.table)} "
                f"operations, among them {list(self.table.values())[:5]}",
                ResourceWarning,
                stacklevel=2,
            )
            return False
        self._free()
        return True

    def _free(self) -> None:
        # Forgotten first, and then freed: a fork in another thread comes in between, and its child
        # would free it again.
        c, self._c = self._c, None
        _open_rings.discard(self)
        self._view.release()
        lib.tu_close(c)
        self._free_pool()

    def _free_pool(self) -> None:
        if self._pool_memory != ffi.NULL:
            lib.tu_pool_free(self._pool_memory, POOL_SIZE)
            self._pool_memory = ffi.NULL

    def disown(self) -> None:
        """In a forked child: forgets the ring without touching its maps, which are the parent's and
        not mapped here."""
        c, self._c = self._c, None
        if c is not None:
            lib.tu_disown(c)


def _keep_for_ever(ring: UringRing) -> None:
    """`_open_rings` is emptied when the interpreter ends, and the kernel may go on until the
    process does."""
    with contextlib.suppress(ImportError, AttributeError):  # without ctypes, or CPython
        ctypes = importlib.import_module("ctypes")
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(ring))


def _is_of_file(op: Operation) -> bool:
    """Whether it waits for a disk, where no cancel ever finds it: asking for that all the time
    would not end before it does."""
    return op.opcode == Opcode.READ and op.offset != POSITION


def _open(flags: str, sq_entries: int, cq_entries: int | None) -> tuple[Any, Any]:
    """Walks down the ladder of flags on EINVAL, and down the sizes on ENOMEM (RLIMIT_MEMLOCK),
    until a ring opens."""
    out, info = ffi.new("tu_ring **"), ffi.new("struct tu_info *")
    result, patience = -errno.EINVAL, 10
    for setup_flags in LADDERS[flags]:
        entries = sq_entries
        while True:
            wanted = entries * CQ_FACTOR if cq_entries is None else cq_entries
            result = lib.tu_open(out, entries, wanted, setup_flags, info)
            if result != -errno.ENOMEM:
                break
            if entries > SQ_ENTRIES_MIN:
                entries //= 2
            elif (
                patience
            ):  # the kernel gives back the locked memory of closed rings with some delay
                patience -= 1
                time.sleep(0.02)
            else:
                break
        if result == 0:
            return out[0], info
        if result != -errno.EINVAL:
            break
    raise RingUnavailableError(-result, why_unavailable(-result, "io_uring_setup"))


def _disown_all() -> None:
    for ring in list(_open_rings):
        ring.disown()
    _open_rings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
