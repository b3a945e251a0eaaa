"""Holds back what a TLS stream sends, so that the records of one list of buffers go out as one
operation.

A trio.SSLStream encrypts one buffer at a time and hands its transport the record. With the cork in,
the transport keeps what the task that is sending the list gives it, and the last record takes all
of it along, within the TLS stream's own lock and error handling. What another task sends in between
(an answer to the peer's protocol messages) is not held back, nor what came before it. It takes no
more of the TLS stream than that it calls send_all of its transport.

Rules of this file: bytes leave in the order in which they came. Nothing is dropped: if the list is
interrupted, what was encrypted goes out with the stream's next send, since the peer counts the
records.
"""

from __future__ import annotations

from typing import Any

from trio.lowlevel import Task, current_task

# Bytes held back; more go out at once, so that memory is bounded and a slow peer slows the sender
# down.
CORK_MAX = 2**18


class Cork:
    """What one task holds back; `task` is None when it has nothing more to add."""

    def __init__(self) -> None:
        self.task: Task | None = current_task()
        self._records: list[Any] = []
        self._size = 0

    def holds(self, record: Any) -> bool:
        """Takes a record. False: all of them are to be sent now."""
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
    """The cork that is in a stream of this package that sends."""
    cork: Cork | None = stream._cork
    return cork


def put_cork(stream: Any, cork: Cork | None) -> None:
    """Puts it in, or takes out what is there."""
    stream._cork = cork


def uncork(stream: Any) -> None:
    """The list is over. What was held back of it, if it was interrupted, leaves with the next
    send."""
    cork = cork_of(stream)
    if cork is not None:
        cork.task = None
        if cork.empty:
            put_cork(stream, None)
