"""Operations without a ring: the system call that one stands for, made now, in this thread and without waiting.

All that PollRing does; and what UringRing does first on a quiet run, where a pass of the scheduler for each operation, or an
io_uring_enter for one alone, costs more than the call.

Rules of this file: rule S1 of _ring.py. A provided buffer is one scratch buffer of the ring's, used for one system call.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from ._contract import LARGE_SIZE, SMALL_SIZE
from ._entries import make_entry, pin
from ._extension import ffi, lib
from ._op import LARGE_GROUP, NO_GROUP, Opcode

if TYPE_CHECKING:
    from ._contract import RingCounters
    from ._op import Operation

_NOT_READY = -errno.EINPROGRESS

_tu_attempt = lib.tu_attempt


class SystemCalls:
    """What the rings share."""

    counters: RingCounters
    _scratch: Any = None  # in place of a provided buffer
    _scratch_bytes: Any = None

    def attempt(self, op: Operation) -> bool:
        if op.opcode == Opcode.CONNECT or op.shots is not None:
            return False  # begun twice, a connect is another thing; and a multishot has no system call
        entry, address, length = self._prepare(op)
        res = self._call(op, entry, address, length, 0)
        if res is None:
            op.pin = None
            return False
        op.res = res
        op.pin = op.buffer = op.buffers = None  # S3
        counters = self.counters
        counters.direct += 1
        counters.submitted[op.opcode] += 1
        counters.count_result(op, res)
        return True

    def _prepare(self, op: Operation) -> tuple[Any, Any, int]:
        """Pins what the operation points at. Its entry, address and length."""
        entry = op.entry or make_entry(op)
        address, length = pin(op)
        if op.group != NO_GROUP:
            if self._scratch is None:
                self._scratch = ffi.new("char[]", LARGE_SIZE)
                self._scratch_bytes = ffi.buffer(self._scratch)
            size = min(op.length, LARGE_SIZE if op.group == LARGE_GROUP else SMALL_SIZE)
            if op.opcode == Opcode.RECVMSG:
                op.pin[0].iov[0], op.pin[0].iov[1] = int(ffi.cast("uintptr_t", self._scratch)), size
            else:
                address, length = self._scratch, size
        return entry, address, length

    def _call(self, op: Operation, entry: Any, address: Any, length: int, flags: int) -> int | None:
        """Makes the system call. None: the descriptor is not ready."""
        res: int = _tu_attempt(entry, address, length, flags)
        if res == _NOT_READY:
            return None
        if res >= 0 and op.group != NO_GROUP:
            try:
                op.chunk = self._scratch_bytes[:res]
            except MemoryError:  # this stream's bytes are lost, and it is told so; the others go on
                res = -errno.ENOMEM
        return res
