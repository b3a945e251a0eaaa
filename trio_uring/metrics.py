"""Counts what a network does: connections, bytes, operations by how they ended. `Metered` feeds it.

Rules of this file: standard library only. Only one thread writes: that of the trio run that uses
the network. Every change is one store into one dict, and a snapshot is one copy of it. So a
snapshot taken in any thread shows a single moment, and counting needs no lock (two would cost more
than everything else).
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

Outcome = Literal["timed_out", "cancelled", "failed"]
"""How an operation that did not succeed ended."""

Direction = Literal["in", "out"]
"""The direction of a connection: accepted, or dialed."""

OPERATIONS: Final = ("bind", "dial", "accept", "send", "receive", "close")

_DEPTH_MAX = 8  # how far causes of causes are followed: they may form a circle

# OSErrors whose errno is not the system's, but the resolver's or OpenSSL's.
_FOREIGN_NUMBERS = (socket.gaierror, socket.herror, ssl.SSLError)


_Ended = Mapping[tuple[Outcome, str], int]
_Row = tuple[int, int, int, _Ended]
"""The counts of one operation: attempts, successes, bytes, and other ends by outcome and kind.

It is not a class, because two are made for every operation. The mapping is replaced, never changed.
"""

_ZERO: _Row = (0, 0, 0, {})


@dataclass(frozen=True)
class MetricsSnapshot:
    """What a network has done so far, at a single moment.

    Mappings by operation have every name of OPERATIONS as a key.
    """

    connections_in: int
    """Connections accepted."""
    connections_out: int
    """Connections dialed."""
    open_in: int
    """Accepted connections that are not closed yet."""
    open_out: int
    """Dialed connections that are not closed yet."""
    bytes_in: int
    """Bytes returned by receives that succeeded."""
    bytes_out: int
    """Bytes of sends that succeeded completely; the part of a cancelled or failed send that went
    out is not counted."""
    operations: Mapping[str, int]
    """Attempts; those that are in none of the mappings below are in progress."""
    successes: Mapping[str, int]
    timeouts: Mapping[str, int]
    """Operations ended by trio.TooSlowError, which a `timeout` or a default of the config raises. A
    scope of the caller's (trio.fail_after) counts as a cancellation."""
    cancelled: Mapping[str, int]
    """Operations ended by cancellation, or because their coroutine was destroyed."""
    errors: Mapping[tuple[str, str], int]
    """By operation and kind (see error_kind); only those that have occurred."""


class Metrics:
    """Counts what is done on a network or a stream that is wrapped in Metered or MeteredStream.

    Several networks and streams may share one, if they are used in one thread. A connection that is
    dropped without being closed stays in the count of open ones.
    """

    def __init__(self) -> None:
        # By operation; and by direction, where the successes are closed connections.
        self._rows: dict[str, _Row] = dict.fromkeys((*OPERATIONS, "in", "out"), _ZERO)

    def attempt(
        self, operation: str, address: object = None, buffers: Sequence[Buffer] = ()
    ) -> None:
        """Counts an operation that begins.

        Args:
            operation: one of OPERATIONS.
            address, buffers: not used; the wrappers tell every observer the same.
        """
        rows = self._rows
        attempted, succeeded, size, ended = rows[operation]
        rows[operation] = (attempted + 1, succeeded, size, ended)

    def success(
        self, operation: str, address: object = None, buffers: Sequence[Buffer] = ()
    ) -> None:
        """Counts an operation that succeeded.

        Args:
            operation: one of OPERATIONS. "accept" and "dial" open a connection.
            address: not used.
            buffers: what was sent or received; their bytes are counted.
        """
        moved = 0
        for buffer in buffers:
            moved += len(buffer) if type(buffer) is bytes else size_of(buffer)
        rows = self._rows
        attempted, succeeded, size, ended = rows[operation]
        rows[operation] = (attempted, succeeded + 1, size + moved, ended)

    def failure(
        self, operation: str, address: object, error: BaseException, outcome: Outcome = "failed"
    ) -> None:
        """Counts an operation that ended in any other way.

        Args:
            operation: one of OPERATIONS.
            address: not used.
            error: what it raised.
            outcome: what that means; the caller, which knows trio's exceptions, decides it.
        """
        key = (outcome, error_kind(error) if outcome == "failed" else "")
        attempted, succeeded, size, ended = self._rows[operation]
        self._rows[operation] = (attempted, succeeded, size, {**ended, key: ended.get(key, 0) + 1})

    def connection_closed(self, direction: Direction) -> None:
        """Counts the close of a connection that "accept" (in) or "dial" (out) had opened."""
        attempted, closed, size, ended = self._rows[direction]
        self._rows[direction] = (attempted, closed + 1, size, ended)

    def snapshot(self) -> MetricsSnapshot:
        """A consistent copy of all counters, from any thread, even in a signal handler."""
        rows = self._rows.copy()
        attempted = {name: rows[name][0] for name in OPERATIONS}
        succeeded = {name: rows[name][1] for name in OPERATIONS}
        ended = {name: rows[name][3] for name in OPERATIONS}
        return MetricsSnapshot(
            connections_in=succeeded["accept"],
            connections_out=succeeded["dial"],
            open_in=succeeded["accept"] - rows["in"][1],
            open_out=succeeded["dial"] - rows["out"][1],
            bytes_in=rows["receive"][2],
            bytes_out=rows["send"][2],
            operations=attempted,
            successes=succeeded,
            timeouts={name: ended[name].get(("timed_out", ""), 0) for name in OPERATIONS},
            cancelled={name: ended[name].get(("cancelled", ""), 0) for name in OPERATIONS},
            errors={
                (name, kind): count
                for name in OPERATIONS
                for (outcome, kind), count in ended[name].items()
                if outcome == "failed"
            },
        )


def size_of(buffer: object) -> int:
    """Bytes of a buffer; 0 for what is not a buffer, or no longer: the stream will refuse it."""
    try:
        with memoryview(buffer) as view:  # type: ignore[arg-type]
            return view.nbytes
    except (TypeError, ValueError):
        return 0


def error_kind(error: BaseException) -> str:
    """A short, stable name of what went wrong, to count by: never a text or an address.

    It is the name of the errno ("ECONNRESET") if `error` is an OSError of the system, or was caused
    by one, as trio.BrokenResourceError is; also if it was caused by a group whose members all have
    the same errno, as when a dial tried several addresses. Otherwise it is the name of the
    exception's class ("ClosedResourceError", "gaierror").
    """
    return _errno_name(error, _DEPTH_MAX) or type(error).__name__


def _errno_name(error: BaseException | None, depth: int) -> str | None:
    if error is None or not depth or isinstance(error, _FOREIGN_NUMBERS):
        return None
    if isinstance(error, OSError) and (error.errno or 0) in errno.errorcode:
        return errno.errorcode[error.errno or 0]
    # An exception group, which Python 3.10 does not have.
    members = getattr(error, "exceptions", None)
    if isinstance(members, tuple):
        names = {_errno_name(member, depth - 1) for member in members}
        return names.pop() if len(names) == 1 else None
    return _errno_name(error.__cause__, depth - 1)
