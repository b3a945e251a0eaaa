"""A descriptor that is open, the operations that use it, and how it closes.

A socket and the stream on it share one lease, so that closing either wakes the tasks that wait on
both, and neither takes a direction that a task has on the other.

Rules of this file: it knows no method of a socket and no stream. The descriptor is closed once,
through the driver, which takes back or cancels what is using it first. Nothing here refers to the
socket or stream that has the lease: one that is forgotten is freed at once.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .._driver.engine import TaskOperation
from .._driver.run import current_driver
from .._ring.op import Opcode, poll_event
from .._ring.opcodes import POLLIN, POLLOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._driver.run import AnyDriver


def in_use(op: TaskOperation) -> bool:
    """Whether a task waits for it, or the kernel has it. A run that is over, or the parent's of a
    forked child, has nothing."""
    return (op.task is not None or op.state.in_kernel or op.by_trio) and not op.driver.closed


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
        copying: the directions that a copy has, also while it waits for the other stream (True is
            reading, False writing), each with what it wants called when the direction is closed
            meanwhile.
        closed: close was called; the descriptor may be open still, for a moment.
    """

    closes_descriptor = True  # when it is closed; else it may be in use still

    __slots__ = (
        "__weakref__",
        "_close",
        "_shutdown",
        "closed",
        "copying",
        "kept",
        "operations",
        "owner",
        "reading",
        "writing",
    )

    def __init__(
        self,
        owner: object,
        close: Callable[[], object],
        shutdown: Callable[[int], object] | None = None,
    ) -> None:
        self.owner = owner
        self.operations: list[TaskOperation] = []
        self.reading: TaskOperation | None = None
        self.writing: TaskOperation | None = None
        self.kept = b""
        self.copying: dict[bool, Callable[[], object] | None] = {}
        self.closed = False
        self._close = close
        self._shutdown = shutdown

    def operation(self, opcode: int, fd: int) -> TaskOperation:
        """A new operation of a stream's on this descriptor, for the driver of this run."""
        op = self.direct_operation(opcode, fd)
        self.operations.append(op)
        op.lease = weakref.ref(self)
        return op

    def direct_operation(self, opcode: int, fd: int) -> TaskOperation:
        """A new operation of the socket's own."""
        return TaskOperation(self.live_driver() or self._next_driver(), opcode, fd, self.owner)

    def _next_driver(self) -> AnyDriver:
        """This run's; or the parent's, which refuses, in a forked child: the parent may have
        operations on the descriptor."""
        return (
            next((op.driver for op in self.operations if op.driver.disowned), None)
            or current_driver()
        )

    def live_driver(self) -> Any:
        """The driver that this descriptor is used with, if its run goes on: no other may work on it
        meanwhile."""
        for op in (self.reading, self.writing):
            if op is not None and in_use(op):
                return op.driver
        return next((op.driver for op in self.operations if not op.driver.closed), None)

    def used_by(self) -> Any:
        """The driver for which a task waits on this descriptor, or the kernel has an operation."""
        for op in (self.reading, self.writing, *self.operations):
            if op is not None and in_use(op):
                return op.driver
        return None

    def check_thread(self) -> None:
        """Raises RuntimeError, as trio does, if a trio.run of another thread is using it.

        It cannot be closed here.
        """
        driver = self.used_by()
        if driver is not None and driver.thread != get_ident():
            what = "must be called from async context, and in the trio.run whose task waits on this"
            raise RuntimeError(what)

    def hold(self, op: TaskOperation, reading: bool) -> None:
        """Gives the direction to an operation of the socket's own."""
        if reading:
            self.reading = op
        else:
            self.writing = op

    def let_go(self, op: TaskOperation) -> None:
        """Takes it back."""
        if self.reading is op:
            self.reading = None
        elif self.writing is op:
            self.writing = None

    def streams_use(self, reading: bool) -> bool:
        """Whether a task has this direction by way of a stream, or a copy."""
        if reading in self.copying:
            return True
        event = POLLIN if reading else POLLOUT
        for op in self.operations:
            if op.opcode == Opcode.READ and self._shutdown is not None:
                continue  # of the file that is being sent to the socket, which would have a RECV
            if in_use(op) and poll_event(op) == event:
                return True
        return False

    def check_streams(self, reading: bool) -> None:
        """Raises trio.BusyResourceError if a task has this direction by way of a stream."""
        if self.streams_use(reading):
            raise busy()

    def check_socket(self, reading: bool) -> None:
        """Raises trio.BusyResourceError if a task has this direction by way of the socket
        itself."""
        op = self.reading if reading else self.writing
        if op is not None and in_use(op):
            raise busy()

    @enable_ki_protection
    def close(self) -> None:
        """Closes the descriptor. Operations on it end with ECANCELED, or with what they have
        done."""
        self.closed = True
        self.release(self._close)
        self.tell_copies(True, False)

    def tell_copies(self, *directions: bool) -> None:
        for reading in directions:
            closed = self.copying.get(reading)
            if closed is not None:
                closed()

    @enable_ki_protection
    def release(self, close: Callable[[], object]) -> None:
        """Ends the operations on the descriptor, and calls `close` once the kernel knows."""
        driver = self.live_driver()
        if driver is None:
            close()
            return
        if driver.failure is not None and self._shutdown is not None:
            with contextlib.suppress(
                OSError
            ):  # what the kernel holds and nobody can cancel would keep back the FIN
                self._shutdown(stdlib_socket.SHUT_RDWR)
        ops = [op for op in (self.reading, self.writing) if op is not None]
        driver.release([*ops, *self.operations], close)


def busy() -> trio.BusyResourceError:
    """In trio's words."""
    return trio.BusyResourceError("another task is already reading / writing this fd")
