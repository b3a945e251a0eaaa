"""The kernel's ring: operations go in as entries, and come back as completions.

Rules of this file: S1 to S7 of `base.py`. Nothing above it deals with an address, cdata or a token;
nothing below it (C) decides anything. How objects become addresses is in `entries.py`, how a ring
is opened in `setup.py`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from .._accelerator import hot
from .._errors import RingBrokenError
from .base import WATCH, RingBase
from .entries import address, address_of, make_entry, pin_vector
from .extension import ffi, lib
from .figures import SMALL_COUNT, SQ_ENTRIES
from .opcodes import Opcode
from .setup import open_ring

if TYPE_CHECKING:
    from .op import Operation

_ENTER_GETEVENTS = 1 << 0  # IORING_ENTER_*

CANCELS_RESERVED = 8  # submission slots that only cancels may take
DRAIN_MAX = 1024  # completions copied by one call

_SHORT_OF = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM})
_PASSING = _SHORT_OF | {errno.EINTR, errno.ETIME}  # answers of enter that are not failures
# Under DEFER_TASKRUN, one enter runs 20 pieces of task work, or as many as the completions that it
# is told to wait for: here as many as find a provided buffer, besides the receives of a full
# submission queue.
_ALL = SMALL_COUNT - SQ_ENTRIES
_EBADR = 53  # Linux's; not every platform has it
_FOREVER = 86400.0  # seconds: trio never asks for more, and an enter this long gets no timeout

# Looked up once, since they are called in every pass.
_tu_turn, _tu_more = lib.tu_turn, lib.tu_more


class UringRing(RingBase):
    """The kernel's ring, opened by the thread that uses it.

    Args:
        flags: the setup flags to try first: "defer", "coop" or "plain" (`setup.py`).
        sq_entries: slots of the submission queue; a power of two.
        cq_entries: slots of the completion queue; None: 16 times sq_entries.
        provide_buffers: False: receives bring their own memory, as on kernels before 5.19.
        restrict: the kernel refuses every opcode that this package does not use, and every further
            registration; or there is no ring.
    """

    def __init__(
        self,
        flags: str = "defer",
        sq_entries: int = SQ_ENTRIES,
        cq_entries: int | None = None,
        provide_buffers: bool = True,
        restrict: bool = False,
    ) -> None:
        self._out = ffi.new("int64_t[]", 2 + 3 * DRAIN_MAX)
        self._view = memoryview(ffi.buffer(self._out)).cast("q")
        self._make_entry, self._write = make_entry, lib.tu_submit
        self._export, self._export_list, self._nothing = ffi.from_buffer, pin_vector, ffi.NULL
        self._c, self._fd, info, self._buffers = open_ring(
            flags, sq_entries, cq_entries, provide_buffers, restrict
        )
        self._provided, self._starts = self._buffers.memory, self._buffers.starts
        self._more_work = False  # the last turn left task work for the next one
        self._entries = info.sq_entries
        super().__init__(info, self._entries - min(CANCELS_RESERVED, self._entries // 2))
        if hot is not None:
            self._tell_accelerator()

    def _tell_accelerator(self) -> None:
        """Tells C where things are."""
        self._ring_at, self._out_at = address(self._c), address(self._out)
        self._provided_at = address(self._buffers.at)
        self._write_at, self._more_at = address_of("tu_submit"), address_of("tu_more")
        if type(self).turn is UringRing.turn:  # otherwise it is a ring that is to be asked
            self._turn_at = address_of("tu_turn")

    def fileno(self) -> int:
        return self._fd

    # -- submission

    def _write_cancels(self) -> None:
        while self._late_cancels and self._unsubmitted < self._entries:
            lib.tu_cancel(self._c, self._late_cancels.popleft())
            self._unsubmitted += 1
            self.counters.submitted[Opcode.ASYNC_CANCEL] += 1

    def watch(self, fd: int) -> bool:
        if self._unsubmitted >= self._submit_max:
            return False
        lib.tu_watch(self._c, fd, WATCH)
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
            if self._late_cancels:
                # There are more than slots: all of them must enter before what a task does next.
                self.flush()
        if timeout > 0:
            least, timeout = 1, timeout if timeout < _FOREVER else -1.0
        elif self._unsubmitted or _tu_more(self._c):
            least, timeout = (_ALL, 0.0) if self._more_work else (0, -1.0)
        else:
            self.short = False
            return False
        self.enters += 1
        count = _tu_turn(self._c, least, _ENTER_GETEVENTS, timeout, self._out, DRAIN_MAX)
        view = self._view
        if count:  # first of all: they are the caller's, whatever the answer of enter is
            self._take(count, done)
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
        """Handles the answer of an io_uring_enter. False: the kernel is short of resources."""
        if taken >= 0:
            self._unsubmitted -= taken
            self.short = not taken and self._unsubmitted > 0
            return not self.short
        self._unsubmitted = self._entries - lib.tu_sq_space(self._c)
        # EINTR: a signal came, or SIGSTOP and SIGCONT under load. ETIME: the time to wait is up.
        self.short = -taken in _SHORT_OF
        if -taken in _PASSING:
            return not self.short
        raise RingBrokenError(
            -taken,
            f"io_uring_enter failed with {errno.errorcode.get(-taken)}: {os.strerror(-taken)}",
        )

    def _enter(self) -> bool:
        """Enters without waiting. False: the kernel is short of resources."""
        self.enters += 1
        return self._entered(lib.tu_enter(self._c, 0, _ENTER_GETEVENTS, -1.0))

    # -- completion

    def _take(self, count: int, done: list[Operation]) -> None:
        """Takes the completions that C has copied."""
        if hot is None:
            self._collect(self._view[2 : 2 + 3 * count].tolist(), done)
        else:
            self.completions += count
            self._collect_out(count, done)

    def drain(self, done: list[Operation]) -> bool:
        self._check_owner()
        while True:
            count = lib.tu_drain(self._c, self._out, DRAIN_MAX)
            if count:
                self._take(count, done)
            more = self._view[0]
            if more & 6:
                self.counters.cq_overflows += more >> 2
                if lib.tu_overflowed(self._c):
                    raise RingBrokenError(
                        _EBADR, "the kernel ran out of memory and dropped completions"
                    )
                if not self._enter() and not _tu_more(self._c) & 1:
                    # It is short of memory, and would still be at a second attempt: the next pass
                    # tries again.
                    break
            elif not more:
                break
        if self._missed:
            self._ask_again()
        return bool(self._late_cancels)

    # -- the end

    def _free(self, c: Any) -> None:
        self._view.release()
        lib.tu_close(c)
        self._buffers.free()

    def _free_in_child(self, c: Any) -> None:
        lib.tu_disown(c)
