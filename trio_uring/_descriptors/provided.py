"""Which of the ring's provided buffers a stream's receives ask for: small ones for messages, large
ones for bulk.

A stream begins with small provided buffers, goes to large ones when it fills the small, and back
when messages are small.

Rules of this file: it decides about the next receive, and performs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._ring.op import LARGE_GROUP, NO_GROUP, SMALL_GROUP
from .._ring.protocol import LARGE_SIZE, SMALL_SIZE

if TYPE_CHECKING:
    from .._driver.engine import TaskOperation

# receives of at most SMALL_SIZE in a row, after which a bulk stream goes back to small buffers
BULK_STREAK = 8
# bytes of a receive on a kernel without provided buffers (before 5.19); held while a task waits
OWN_SIZE = 16384


class BufferChoice:
    """Mixed into what receives a stream of bytes."""

    _size = OWN_SIZE  # bytes of the buffers that it receives into
    _streak = 0  # receives in a row that were small for a stream with large buffers

    def _adapt(self, op: TaskOperation, count: int) -> None:
        """Large buffers for a stream that fills small ones; small ones again after a while of small
        messages."""
        if op.group == NO_GROUP:
            return
        if op.group == LARGE_GROUP:
            self._streak = 0 if count > SMALL_SIZE else self._streak + 1
            if self._streak == BULK_STREAK:
                self._use(op, SMALL_GROUP)
        elif count == SMALL_SIZE:
            self._use(op, LARGE_GROUP)

    def _use(self, op: TaskOperation, group: int) -> None:
        op.group, op.entry, self._streak = group, None, 0
        self._size = {LARGE_GROUP: LARGE_SIZE, SMALL_GROUP: SMALL_SIZE, NO_GROUP: OWN_SIZE}[group]

    def _use_first(self, op: TaskOperation) -> None:
        """What a new operation begins with, or one that found its group empty; there are more small
        buffers than large ones."""
        self._use(op, SMALL_GROUP if op.driver.provided_buffers else NO_GROUP)
