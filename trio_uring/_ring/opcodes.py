"""The table of opcodes: for each thing that is asked of the kernel, all that is to be known of it.

A new opcode is a row here. Where it may be tried, `_driver/readiness.py` has its system call.

Rules of this file: standard library only, and a leaf. Every family of opcodes, wherever it is used,
is derived from a column of this table. Families are tuples of plain ints, in which an `Opcode` is
found as well as a number is; a set of ints would not find it, since an enum's hash is its name's.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Direction(enum.Enum):
    """Which way of a descriptor an operation uses. At most one of each way is in the kernel."""

    SENDING = enum.auto()
    RECEIVING = enum.auto()
    NEITHER = enum.auto()


_SENDING, _RECEIVING, _NEITHER = Direction

POLLIN, POLLOUT = 0x001, 0x004  # of poll(2), here since not every platform's select has them
_NONE = 0

OPCODES_MAX: Final = 64  # the kernel's opcodes are below this number


class Opcode(enum.IntEnum):
    """The operations that this package uses, by the kernel's names and numbers
    (linux/io_uring.h)."""

    since: str
    """The first kernel that has it."""
    required: bool
    """Whether a ring without it is of no use. Of the optional ones `RingInfo.lacking` has those
    that are not there."""
    direction: Direction
    poll_event: int
    """What to wait for with poll(2) when it would block. 0: nothing of its own; a POLL_ADD is told
    by its flags, see `op.poll_event`."""
    counts_bytes: bool
    """Whether a result > 0 is a number of bytes."""
    may_be_tried: bool
    """Whether a system call does the same at once, or says that it would wait. Then it can be done
    by readiness, and so it is without a ring, or on one that lacks it."""
    by_completion: bool
    """Whether a ring does it for a task. What a completion takes it takes for a thread that may be
    busy, so where that may be somebody else's (a pipe has other readers) it is done by
    readiness."""

    def __new__(cls, number: int, *columns: Any) -> Opcode:
        self = int.__new__(cls, number)
        self._value_ = number
        (
            self.since,
            self.required,
            self.direction,
            self.poll_event,
            self.counts_bytes,
            self.may_be_tried,
            self.by_completion,
        ) = columns
        return self

    # fmt: off
    #              number  since  required  direction   poll event  counts  may be  by com-
    #                                                               bytes   tried   pletion
    WRITEV       =  2,     "5.1", False,    _SENDING,   POLLOUT,    True,   True,   True
    POLL_ADD     =  6,     "5.1", True,     _NEITHER,   _NONE,      False,  False,  True
    SENDMSG      =  9,     "5.3", True,     _SENDING,   POLLOUT,    True,   True,   True
    ASYNC_CANCEL = 14,     "5.5", True,     _NEITHER,   _NONE,      False,  False,  True
    READ         = 22,     "5.6", False,    _RECEIVING, POLLIN,     True,   True,   False
    WRITE        = 23,     "5.6", False,    _SENDING,   POLLOUT,    True,   True,   True
    SEND         = 26,     "5.6", True,     _SENDING,   POLLOUT,    True,   True,   True
    RECV         = 27,     "5.6", True,     _RECEIVING, POLLIN,     True,   True,   True
    # fmt: on


def _those(belongs: Callable[[Opcode], bool]) -> tuple[int, ...]:
    return tuple(int(opcode) for opcode in Opcode if belongs(opcode))


SENDING = _those(lambda opcode: opcode.direction is Direction.SENDING)
RECEIVING = _those(lambda opcode: opcode.direction is Direction.RECEIVING)
BYTES_SENT = _those(lambda opcode: opcode.counts_bytes and opcode in SENDING)
BYTES_RECEIVED = _those(lambda opcode: opcode.counts_bytes and opcode in RECEIVING)
BY_READINESS = _those(lambda opcode: not opcode.by_completion)
"""Those that not even a ring does by completion for a task."""
POLL_EVENTS = {int(opcode): opcode.poll_event for opcode in Opcode}
