"""The invariants of an engine, as asserts that run in tests (tests/conftest.py sets CHECKED).

Rules of this file: it reads, and changes nothing but its own records.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHECKED = False
TABLE_MAX = 1000  # with more operations in flight nothing is compared: it would be quadratic

# By ring, the tokens that were in flight when it was last written to.
_books: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()


def check_written(ring: Any, queue: Iterable[Any]) -> None:
    """Called when the queue has become entries: queue and kernel are disjoint."""
    table = ring.table
    _books.pop(ring, None)
    if len(table) > TABLE_MAX:
        return
    for queued in queue:
        assert not queued.state.in_kernel, f"{queued} is both queued and in the kernel"
    for token, op in table.items():
        assert op.token == token, f"{op} is in the table under another token"
        assert op.state.in_kernel, f"{op} is in the table, and the kernel does not have it"
    _books[ring] = set(table)


def check_done(ring: Any, done: Sequence[Any]) -> None:
    """Called before drained operations are finished: they hold no memory, the rest is in flight."""
    for op in done:
        assert op.pin is None, f"{op} is done, and still has its memory pinned"
        assert op.buffer is None, f"{op} is done, and still has its buffer"
        assert op.buffers is None, f"{op} is done, and still has its buffers"
    before, table = _books.pop(ring, None), ring.table
    if before is not None:
        left = before - {op.token for op in done}
        assert set(table) == left, "what is in flight is not what was submitted, less what is done"
        _books[ring] = set(table)
