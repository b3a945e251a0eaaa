"""A descriptor that is open, the operations that use it, and how it closes.

A socket and the stream on it share one lease, so that closing either wakes the tasks that wait on both, and neither takes a
direction that a task has on the other.

Rules of this file: it knows no method of a socket and no stream. The descriptor is closed once, through the driver, which
takes back or cancels what is using it first. Nothing here refers to the socket or stream that has the lease: one that is
forgotten is freed at once.
"""

from __future__ import annotations

import contextlib
import select
import socket as stdlib_socket
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection

from ._driver import current_driver
from ._engine import TaskOperation
from ._op import Opcode

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._engine import Engine

# Plain ints: an IntEnum's hash is a call of Python code.
_READING = frozenset(map(int, (Opcode.RECV, Opcode.RECVMSG, Opcode.READ, Opcode.ACCEPT)))
_WRITING = frozenset(map(int, (Opcode.SEND, Opcode.SENDMSG, Opcode.WRITE, Opcode.WRITEV, Opcode.CONNECT)))


def in_use(op: TaskOperation) -> bool:
    """Whether a task waits for it, or the kernel has it. A run that is over, or the parent's of a forked child, has nothing."""
    return (op.task is not None or op.state.in_kernel) and not op.driver.closed


class Lease:
    """The operations on one descriptor.

    Args:
        owner: what keeps the descriptor open for as long as the ring holds an operation on it.
        close: closes the descriptor.
        shutdown: ends a socket's connection; None: it is not a socket.

    Attributes:
        operations: those of the streams on it, also when they are not in use.
        reading, writing: what the socket itself does in this direction, or did last.
        kept: bytes that a receive of the socket's got whose coroutine was destroyed.
        closed: close was called; the descriptor may be open still, for a moment.
    """

    __slots__ = ("_close", "_shutdown", "closed", "kept", "operations", "owner", "reading", "writing")

    def __init__(self, owner: object, close: Callable[[], object], shutdown: Callable[[int], object] | None = None) -> None:
        self.owner = owner
        self.operations: list[TaskOperation] = []
        self.reading: TaskOperation | None = None
        self.writing: TaskOperation | None = None
        self.kept = b""
        self.closed = False
        self._close = close
        self._shutdown = shutdown

    def __del__(self) -> None:
        self.operations.clear()  # which they refer to: the owner is freed without the garbage collector

    def operation(self, opcode: int, fd: int) -> TaskOperation:
        """A new operation of a stream's on this descriptor, for the driver of this run."""
        op = self.direct_operation(opcode, fd)
        self.operations.append(op)
        op.siblings = self.operations
        return op

    def direct_operation(self, opcode: int, fd: int) -> TaskOperation:
        """A new operation of the socket's own."""
        return TaskOperation(self.live_driver() or current_driver(), opcode, fd, self.owner)

    def live_driver(self) -> Engine | None:
        """The driver that this descriptor is used with, if its run goes on: no other may work on it meanwhile."""
        for op in (self.reading, self.writing):
            if op is not None and in_use(op):
                return op.driver
        return next((op.driver for op in self.operations if not op.driver.closed), None)

    def check_streams(self, reading: bool) -> None:
        """Raises trio.BusyResourceError if a task has this direction by way of a stream."""
        opcodes, events = (_READING, select.POLLIN) if reading else (_WRITING, select.POLLOUT)
        for op in self.operations:
            if in_use(op) and (op.opcode in opcodes or (op.opcode == Opcode.POLL_ADD and op.flags == events)):
                raise busy(reading)

    def check_socket(self, reading: bool) -> None:
        """Raises trio.BusyResourceError if a task has this direction by way of the socket itself."""
        op = self.reading if reading else self.writing
        if op is not None and in_use(op):
            raise busy(reading)

    @enable_ki_protection
    def close(self) -> None:
        """Closes the descriptor. Operations on it end with ECANCELED, or with what they have done."""
        self.closed = True
        self.release(self._close)

    @enable_ki_protection
    def release(self, close: Callable[[], object]) -> None:
        """Ends the operations on the descriptor, and calls `close` once the kernel knows."""
        driver = self.live_driver()
        if driver is None:
            close()
            return
        if driver.failure is not None and self._shutdown is not None:
            with contextlib.suppress(OSError):  # what the kernel holds and nobody can cancel would keep back the FIN
                self._shutdown(stdlib_socket.SHUT_RDWR)
        ops = [op for op in (self.reading, self.writing) if op is not None]
        driver.release([*ops, *self.operations], close)


def busy(reading: bool) -> trio.BusyResourceError:
    what = "reading from" if reading else "writing to"
    return trio.BusyResourceError(f"another task is already {what} this socket")
