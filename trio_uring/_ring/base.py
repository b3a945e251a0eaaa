"""What all rings have in common: tokens, table, pins, cancels, completions, owner, fork, end.

Rules of this file: it knows no address and no kernel. Each ring is a subclass, of which only the
hooks below are known here. The safety of everything above rests on S1 to S7; read them before you
change a ring.

S1  Whatever an entry points at belongs to an object that the operation pins (an exported buffer can
    be neither resized nor freed), and the operation is in the ring's table from the moment its
    entry is written until its completion. A coroutine's frame is no pin: coro.close() drops it.
S2  A ring that is open is reachable from this module (`open_rings`).
S3  Pins are released on one line, in `_collect`.
S4  Tokens (user_data) come from a 62-bit counter and are never used twice. The completion of a
    cancel itself has its target's token with the highest bit set. It proves nothing; but if it says
    that the target was not found, the cancel is sent again.
S5  A descriptor is closed only when no operation uses it: `Operation.owner` keeps it open.
S6  Only the thread and the process that opened a ring touch it.
S7  A ring is closed with nothing in flight, or leaked loudly: closing the descriptor does not stop
    the kernel from writing to memory.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import importlib
import os
import warnings
from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Any

from .._accelerator import hot
from .._errors import RingBrokenError
from .figures import RingCounters
from .op import CANCELLING, POSITION, SUBMITTED, Operation
from .opcodes import Opcode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .figures import RingInfo

# The token of the watched descriptor. The tokens of cancels are above it; read as C's int64, they
# are below 0.
WATCH = 1 << 62
_TARGET = WATCH - 1  # the bits of a cancel's token that hold its target's token

_CQE_F_BUFFER, _CQE_F_MORE = 1 << 0, 1 << 1  # IORING_CQE_F_*

open_rings: set[RingBase] = set()  # S2


if TYPE_CHECKING or hot is None:

    class _Fields:
        """The fields of a ring that the accelerator has in C."""

        if TYPE_CHECKING:  # the accelerator's alone
            _ring_at: int
            _write_at: int
            _out_at: int
            _provided_at: int
            _turn_at: int
            _more_at: int

            def _collect_out(self, count: int, done: list[Operation]) -> None: ...

else:
    _Fields = hot.Ring


class RingBase(_Fields, abc.ABC):
    """A ring, except for the way in which it reaches its kernel.

    Args:
        info: describes the ring.
        room: how many entries may be written and not yet submitted; beyond that `submit` refuses.

    A subclass sets the attributes below and then calls this `__init__`. Some of them are functions,
    because they are called for every operation: a function of C's costs no call of Python code, as
    a method would.

    Attributes:
        _c: the object that represents the ring; None once it is closed, and in a forked child.
        _make_entry: makes the part of an operation's entry that is the same in each submission. It
            may keep it in `op.entry`.
        _export: makes, from a buffer, an object that pins it and that an entry can point at;
            ``+ n`` moves on by n bytes.
        _export_list: pins an operation's `buffers`, and returns what the entry points at and the
            entry's length.
        _nothing: what an entry without buffers points at.
        _write: writes an entry, or raises. Its arguments: `_c`, what `_make_entry` made, what the
            entry points at, its length, its token.
        _provided: the memory of the provided buffers; a slice of it is bytes.
        _starts: where in that memory the buffer of each id begins, in bytes.

    A subclass has the methods `_write_cancels`, `_free` and `_free_in_child`, and those of the
    protocol that are not here. It adds the entries that it writes itself to `_unsubmitted`, and
    subtracts those that have left the queue. It gives completions to `_collect`.
    """

    _c: Any
    _make_entry: Callable[[Operation], Any]
    _export: Callable[[Any], Any]
    _export_list: Callable[[Operation], tuple[Any, int]]
    _nothing: Any
    _write: Callable[[Any, Any, Any, int, int], object]
    _provided: Any
    _starts: Sequence[int]

    def __init__(self, info: RingInfo, room: int) -> None:
        self.info = info
        self.counters: RingCounters = RingCounters()
        self.table: dict[int, Operation] = {}
        self.now: float = 0.0
        self.enters: int = 0
        self.completions: int = 0
        self.watching: bool = False
        self.watched: bool = False
        self.short: bool = False
        self._submitted, self._moved = self.counters.submitted, self.counters.moved
        self._submit_max = room
        self._unsubmitted = 0
        self._token = 0
        self._late_cancels: deque[int] = deque()  # targets of cancels that are not yet written
        self._missed: list[int] = []  # targets that a cancel did not find
        self._thread = get_ident()
        open_rings.add(self)

    # -- hooks

    @abc.abstractmethod
    def _write_cancels(self) -> None:
        """Writes as many of `_late_cancels` as there is room for, and counts them."""

    @abc.abstractmethod
    def _free(self, c: Any) -> None:
        """Frees what `_c` was; the kernel has nothing of this ring any more."""

    @abc.abstractmethod
    def _free_in_child(self, c: Any) -> None:
        """The same in a forked child: the ring is the parent's, and its memory is not mapped."""

    # -- submission

    def _submit(self, op: Operation) -> bool:
        if self._unsubmitted >= self._submit_max:
            self.counters.sq_full += 1
            return False
        before, state = op.state, op.state.submitted
        token = self._token = self._token + 1
        # From here on the operation is the ring's. A garbage collection while its entry is being
        # written may destroy its task's coroutine: if it did not count as in the kernel, it would
        # be withdrawn and its buffers released.
        op.token, op.state = token, state
        try:
            entry, buffer, write = op.entry or self._make_entry(op), op.buffer, self._write
            # The kernel sees the entry at the next enter. A bad argument raises here, with nothing
            # written.
            if buffer is not None:
                export = self._export
                op.pin = at = export(buffer)
                write(self._c, entry, at + op.start if op.start else at, op.length, token)
            elif op.buffers is None:
                write(self._c, entry, self._nothing, op.length, token)
            else:
                at, length = self._export_list(op)
                write(self._c, entry, at, length, token)
        except BaseException:
            op.state = before
            raise
        self.table[token] = op
        self._unsubmitted += 1
        op.born = self.now
        self._submitted[op.opcode] += 1
        return True

    # The accelerator has its own, which leaves to this one whatever is unusual.
    if TYPE_CHECKING or hot is None:
        submit = _submit

    def cancel(self, op: Operation) -> None:
        if op.state is not SUBMITTED:
            return
        op.state = op.state.cancelling
        self._late_cancels.append(op.token)
        self._write_cancels()

    def _ask_again(self) -> None:
        """Sends cancels again that entered together with their targets and missed them.

        The targets are still in the table.
        """
        for target in self._missed:
            op = self.table.get(target)
            if op is not None and op.state is CANCELLING and not _is_of_file(op):
                self._late_cancels.append(target)
        self._missed.clear()

    # -- completion

    def _collect(self, values: Sequence[int], done: list[Operation]) -> None:
        """Takes completions.

        Args:
            values: token, result and flags (IORING_CQE_F_*) of each completion in turn.
            done: as for drain.
        """
        table, moved = self.table, self.counters.moved
        self.completions += len(values) // 3
        promised = 0
        completions = iter(values)
        for token, res, flags in zip(completions, completions, completions):
            if token < 0 or token == WATCH:
                self._take_own(token, res)
                continue
            if flags & _CQE_F_MORE:
                promised = token  # it stays in the table, pinned: the kernel still uses it
                continue
            op = table.pop(token)
            done.append(op)  # at once: from here on it is the caller's, whatever happens
            op.res = res
            op.state = op.state.done
            op.pin = op.buffer = op.buffers = None  # S3
            if flags & _CQE_F_BUFFER:
                start = self._starts[flags >> 16]
                try:
                    op.chunk = self._provided[start : start + res]
                except MemoryError:
                    # This stream loses its bytes and gets an error; the others go on.
                    op.res = res = -errno.ENOMEM
            if res > 0:
                moved[op.opcode] += res
            elif res < 0:
                self.counters.count_failure(op, res)
        self._check_promised(promised)

    def _check_promised(self, promised: int) -> None:
        if promised:  # a defect, ours or the kernel's: nobody here asks for several completions
            what = (
                f"the kernel announced more completions of {self.table[promised]}, which has only "
                "one"
            )
            raise RingBrokenError(errno.EPROTO, what)

    def _take_own(self, token: int, res: int) -> None:
        """Takes a completion that belongs to no operation: a cancel's own, or the watch's."""
        if token == WATCH:
            self.watching, self.watched = False, True
        elif res == -errno.ENOENT:
            self._missed.append(token & _TARGET)

    # -- the owner, and the end

    def _check_owner(self) -> None:
        if self._c is None:
            raise RuntimeError(
                "this ring is closed, or belongs to the process that this one was forked from"
            )
        if self._thread != get_ident():
            raise RuntimeError("this ring belongs to another thread")

    def close(self) -> bool:
        if self._c is None:
            return True
        self._check_owner()
        if self.table:  # S7: the kernel may still write to what these operations pin
            _keep_for_ever(self)
            operations = list(self.table.values())
            warnings.warn(
                f"trio_uring leaked a ring: the kernel did not give back {len(operations)} "
                f"operations, among them {operations[:5]}",
                ResourceWarning,
                stacklevel=2,
            )
            return False
        # Forgotten first, then freed: another thread may fork in between, and otherwise the child
        # would free it again.
        c, self._c = self._c, None
        self._ring_at = 0  # the same, for the accelerator
        open_rings.discard(self)
        self._free(c)
        return True

    def disown(self) -> None:
        """Called in a forked child: forgets the ring, which is the parent's."""
        c, self._c = self._c, None
        self._ring_at = 0  # the same, for the accelerator
        if c is not None:
            self._free_in_child(c)


def _is_of_file(op: Operation) -> bool:
    """Whether it reads a file: while it waits for a disk no cancel finds it, so none is repeated.

    Repeating the cancel would go on until the read is done.
    """
    return op.opcode == Opcode.READ and op.offset != POSITION


def _keep_for_ever(ring: RingBase) -> None:
    """Leaks a ring: adds a reference that nobody releases.

    `open_rings` is not enough. It is emptied when the interpreter ends, and the kernel may go on
    writing until the process ends.
    """
    with contextlib.suppress(ImportError, AttributeError):  # without ctypes, or CPython
        ctypes = importlib.import_module("ctypes")
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(ring))


def _disown_all() -> None:
    for ring in list(open_rings):
        ring.disown()
    open_rings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
