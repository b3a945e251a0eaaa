"""The table of opcodes: everything that this package has to know about each of them.

A new opcode is a new row here. If it may be tried, `_driver/readiness.py` has its system call.

Rules of this file: standard library only, and a leaf. Every family of opcodes, wherever it is used,
is derived from a column of this table. Families are tuples of plain ints, so that both an `Opcode`
and a number can be found in them; in a set of ints an `Opcode` would not be found, since an enum
member's hash is that of its name.
"""

from __future__ import annotations

import enum
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


class Direction(enum.Enum):
    """Which direction of a descriptor an operation uses; at most one of each is in the kernel."""

    SENDING = enum.auto()
    RECEIVING = enum.auto()
    NEITHER = enum.auto()


_SENDING, _RECEIVING, _NEITHER = Direction

# A send must not wait in the kernel. Once the peer has half-closed, the kernel's polls end at once:
# it tries the send again and again, and then gives it to a worker thread, which waits for a peer
# that may never read.
# PyPy has no name for Linux's MSG_NOSIGNAL; Windows has neither flag, and needs none.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0x4000 if sys.platform == "linux" else 0)
SEND_FLAGS = _NO_SIGNAL | getattr(socket, "MSG_DONTWAIT", 0)

# Of poll(2); not every platform has them in its select module.
POLLIN, POLLOUT = 0x001, 0x004
POLL_ALWAYS = 0x008 | 0x010 | 0x020  # POLLERR, POLLHUP, POLLNVAL: reported even if not asked for
_NONE = 0

OPCODES_MAX: Final = 64  # the kernel's opcodes are below this number


class Opcode(enum.IntEnum):
    """The operations that this package uses, by the kernel's names and numbers
    (linux/io_uring.h)."""

    since: str
    """The first kernel that has it."""
    required: bool
    """Whether a ring is useless without it. Optional opcodes that a kernel does not have are in
    `RingInfo.lacking`."""
    direction: Direction
    poll_event: int
    """What to wait for with poll(2) when it would block. 0: nothing fixed; the flags of a POLL_ADD
    say it, see `op.poll_event`."""
    counts_bytes: bool
    """Whether a result > 0 is a number of bytes."""
    may_be_tried: bool
    """Whether a system call does the same at once, or says that it would wait. Such an operation
    can be done by readiness: without a ring, or if the ring lacks the opcode."""
    by_completion: bool
    """Whether a task's operation is done by the ring. A completion takes data for a thread that may
    be busy; where the data may be meant for somebody else (a pipe can have other readers), it is
    done by readiness."""

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
"""Those that are done by readiness for a task even if there is a ring."""
POLL_EVENTS = {int(opcode): opcode.poll_event for opcode in Opcode}
