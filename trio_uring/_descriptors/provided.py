"""Chooses provided buffers for a stream's receives: small ones for messages, large ones for bulk.

A direction begins with small buffers, moves to large ones when it fills a small one, and moves back
when messages are small.

Rules of this file: it decides about the next receive, and performs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trio.lowlevel import enable_ki_protection

from .._ring.figures import LARGE_SIZE, SMALL_SIZE
from .._ring.op import LARGE_GROUP, NO_GROUP, SMALL_GROUP

if TYPE_CHECKING:
    from .._driver.operation import TaskOperation

# After this many receives in a row of at most SMALL_SIZE bytes, a stream with large buffers goes
# back to small ones.
BULK_STREAK = 8
# Bytes that a receive brings on a kernel without provided buffers (before 5.19), held while it
# waits.
OWN_SIZE = 16384

_SIZES = {LARGE_GROUP: LARGE_SIZE, SMALL_GROUP: SMALL_SIZE, NO_GROUP: OWN_SIZE}


class Way(Protocol):
    """What a direction remembers about its receives.

    Attributes:
        size: bytes of the buffers that it receives into.
        streak: how many receives in a row were small although the buffers are large.
    """

    size: int
    streak: int


@enable_ki_protection  # the accelerator calls it from the caller's own frame
def adapt(way: Way, op: TaskOperation, count: int) -> None:
    """Changes to large buffers after a full small one, back after BULK_STREAK small receives."""
    if op.group == LARGE_GROUP:
        way.streak = 0 if count > SMALL_SIZE else way.streak + 1
        if way.streak == BULK_STREAK:
            use(way, op, SMALL_GROUP)
    elif op.group == SMALL_GROUP and count == SMALL_SIZE:
        use(way, op, LARGE_GROUP)


def use(way: Way, op: TaskOperation, group: int) -> None:
    op.group, op.entry, way.streak = group, None, 0
    way.size = _SIZES[group]


def use_first(way: Way, op: TaskOperation) -> None:
    """Sets the buffers of a new operation, or of one that found its group empty: small ones.

    There are more small buffers than large ones.
    """
    use(way, op, SMALL_GROUP if op.engine.provided_buffers else NO_GROUP)


def take_chunk(way: Way, op: TaskOperation, count: int) -> bytes:
    """What a receive got, from a provided buffer or in the memory that the call brought."""
    memory = op.memory
    if memory is not None:
        op.memory = None
        return bytes(memory[:count])
    chunk, op.chunk = op.chunk, None
    if op.group == LARGE_GROUP or count == SMALL_SIZE:
        adapt(way, op, count)
    return chunk or b""
