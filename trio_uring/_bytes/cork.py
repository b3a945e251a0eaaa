"""Holds back TLS records, so that all records of one list of buffers go out as one operation.

A trio.SSLStream encrypts one buffer at a time and gives the record to its transport. While a cork
is in place, the transport keeps the records that the task sending the list gives it, and sends all
of them together with the last one, within the TLS stream's own lock and error handling. If another
task sends something in between (an answer to the peer's protocol messages), that goes out at once,
with everything held back before it. All this relies on is that the TLS stream calls send_all of its
transport.

Rules of this file: bytes leave in the order in which they came. Nothing is dropped: if the list is
interrupted, what was already encrypted goes out with the stream's next send, since the peer counts
the records.
"""

from __future__ import annotations

from typing import Any

from trio.lowlevel import Task, current_task

# Bytes held back at most. At this size they go out, so that memory is bounded and a slow peer slows
# the sender down.
CORK_MAX = 2**18


class Cork:
    """The records that one task holds back; `task` is None once it has no more to add."""

    def __init__(self) -> None:
        self.task: Task | None = current_task()
        self._records: list[Any] = []
        self._size = 0

    def holds(self, record: Any) -> bool:
        """Adds a record. False: everything held has to be sent now."""
        self._records.append(record)
        self._size += len(record)
        return self.task is not None and self.task is current_task() and self._size < CORK_MAX

    def take(self) -> list[Any]:
        records, self._records, self._size = self._records, [], 0
        return records

    @property
    def empty(self) -> bool:
        return not self._records


def cork_of(stream: Any) -> Cork | None:
    """The cork that a sending stream of this package has, if any."""
    cork: Cork | None = stream._cork
    return cork


def put_cork(stream: Any, cork: Cork | None) -> None:
    """Gives the stream a cork; None: takes its cork away."""
    stream._cork = cork


def uncork(stream: Any) -> None:
    """Ends the list. Records still held back, if it was interrupted, go out with the next send."""
    cork = cork_of(stream)
    if cork is not None:
        cork.task = None
        if cork.empty:
            put_cork(stream, None)
