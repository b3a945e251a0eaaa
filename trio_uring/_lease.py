"""A descriptor that is open, the operations that use it, and how it closes.

A socket and the stream on it share one lease, so that closing either wakes the tasks that wait on both.

Rules of this file: it knows no direction and no stream. The descriptor is closed once, through the driver, which takes back or
cancels what is using it first.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from typing import TYPE_CHECKING

from trio.lowlevel import enable_ki_protection

from ._driver import current_driver
from ._engine import TaskOperation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._engine import Engine


class Lease:
    """The operations on one descriptor.

    Args:
        owner: what keeps the descriptor open for as long as the ring holds an operation on it.
        close: closes the descriptor.
        shutdown: ends a socket's connection; None: it is not a socket.
    """

    __slots__ = ("_close", "_shutdown", "operations", "owner")

    def __init__(self, owner: object, close: Callable[[], object], shutdown: Callable[[int], object] | None = None) -> None:
        self.owner = owner
        self.operations: list[TaskOperation] = []
        self._close = close
        self._shutdown = shutdown

    def operation(self, opcode: int, fd: int) -> TaskOperation:
        """A new operation on this descriptor, for the driver of this run."""
        op = TaskOperation(self.live_driver() or current_driver(), opcode, fd, self.owner)
        self.operations.append(op)
        op.siblings = self.operations
        return op

    def live_driver(self) -> Engine | None:
        """The driver that this descriptor has been used with, if its run goes on: no other may work on it meanwhile."""
        return next((op.driver for op in self.operations if not op.driver.closed), None)

    @enable_ki_protection
    def close(self) -> None:
        """Closes the descriptor. Operations on it end with ECANCELED, or with what they have done."""
        driver = self.live_driver()
        if driver is None:
            self._close()
            return
        if driver.failure is not None and self._shutdown is not None:
            with contextlib.suppress(OSError):  # what the kernel holds and nobody can cancel would keep back the FIN
                self._shutdown(stdlib_socket.SHUT_RDWR)
        driver.release(self.operations, self._close)
