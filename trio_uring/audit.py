"""A running SHA-256 of everything that is done on a network, and its events. `Audited` feeds it.

Two runs of a program over a simulated network with the same seed have the same digest; if the
digests differ, the events show where the runs first differ.

Rules of this file: standard library only. What is hashed is the encoding below, in which every part
is preceded by its length, so that no two sequences of events look the same; buffers are hashed in
place, and once. A subscriber can break neither the I/O nor the digest.

    event = text(kind) text(operation) text(address) u64(number of buffers) {buffer} text(error)
    buffer = u64(bytes) and the bytes; for a send that succeeded u64(bytes) alone, since its attempt
        had the bytes
    text = u64(bytes) and the UTF-8
    u64 = 8 bytes, big-endian
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .metrics import Outcome, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

Kind = Literal["attempt", "success", "failure"]

_log = logging.getLogger("trio_uring")

_NO_ERROR = bytes(8)  # text("")
_NOT_A_BUFFER = b"\xff" * 8  # instead of the size of something that the stream will refuse
_ADDRESS_IN_MEMORY = re.compile(r"\bat 0x[0-9a-fA-F]+")  # in a repr; differs from run to run


@dataclass(frozen=True)
class AuditEvent:
    """One thing that happened.

    In a subscriber, `Audit.digest` returns the digest up to and including this event.
    """

    number: int
    """From 1, in order."""
    kind: Kind
    operation: str
    """bind, dial, accept, send, receive or close."""
    address: Any
    """The other end's (host, port). For bind, the address asked for, and then the one bound; for a
    failed accept, the listener's. None on streams that do not know it."""
    sizes: tuple[int, ...]
    """Bytes of each buffer that was to be sent, was sent, or was received."""
    error: str | None
    """For a failure: the type, and the text unless it was a cancellation or timeout."""
    outcome: Outcome | None
    """For a failure: "timed_out", "cancelled" or "failed"."""


class Audit:
    """Hashes what is done on a network or a stream that is wrapped in Audited or AuditedStream.

    Several networks and streams may share one, if they are used in one thread. It costs a SHA-256:
    about 0.5 ms for 1 MiB, in the thread that does the I/O.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._number = 0
        self._subscribers: tuple[Callable[[AuditEvent], object], ...] = ()

    @property
    def events(self) -> int:
        """How many events there were."""
        return self._number

    def digest(self) -> str:
        """The SHA-256 of all events so far, as 64 hexadecimal digits."""
        return self._hash.hexdigest()

    # -- called by the wrappers

    def attempt(
        self, operation: str, address: object = None, buffers: Sequence[Buffer] = ()
    ) -> None:
        """Records that an operation begins.

        Args:
            operation: its name.
            address: (host, port), or None.
            buffers: what is to be sent. They are hashed here, whatever becomes of the operation.
        """
        self._fold("attempt", operation, address, buffers, True)

    def success(
        self, operation: str, address: object = None, buffers: Sequence[Buffer] = ()
    ) -> None:
        """Records that an operation succeeded.

        Args:
            operation: its name.
            address: (host, port), or None.
            buffers: what was received (hashed here), or sent (hashed by `attempt`).
        """
        self._fold("success", operation, address, buffers, operation != "send")

    def failure(
        self, operation: str, address: object, error: BaseException, outcome: Outcome = "failed"
    ) -> None:
        """Records that an operation ended in any other way.

        Args:
            operation: its name.
            address: (host, port), or None.
            error: what it raised. For a cancellation or a timeout only the type is hashed, since
                the text mentions tasks and scopes.
            outcome: what that means.
        """
        text = _describe(error) if outcome == "failed" else type(error).__name__
        self._hash.update(_head("failure", operation, address, 0) + _text(text))
        self._number += 1
        if self._subscribers:
            self._publish(
                AuditEvent(self._number, "failure", operation, address, (), text, outcome)
            )

    def _fold(
        self, kind: Kind, operation: str, address: object, buffers: Sequence[Buffer], contents: bool
    ) -> None:
        update = self._hash.update
        head = _head(kind, operation, address, len(buffers))
        for buffer in buffers:
            if contents and type(buffer) is bytes:
                update(head + len(buffer).to_bytes(8, "big"))
                update(buffer)
                head = b""
            elif contents:
                update(head)
                self._fold_buffer(buffer)
                head = b""
            else:
                head += (len(buffer) if type(buffer) is bytes else size_of(buffer)).to_bytes(
                    8, "big"
                )
        update(head + _NO_ERROR)
        self._number += 1
        if self._subscribers:
            sizes = tuple([size_of(buffer) for buffer in buffers])
            self._publish(AuditEvent(self._number, kind, operation, address, sizes, None, None))

    def _fold_buffer(self, buffer: Buffer) -> None:
        """Hashes a buffer that is not bytes: of any items or shape, perhaps not even a buffer."""
        update = self._hash.update
        try:
            with memoryview(buffer) as view:
                update(view.nbytes.to_bytes(8, "big"))
                if view.format == "B" and view.ndim == 1 and view.contiguous:
                    update(view)  # PyPy reads a cast view byte by byte
                    return
                try:
                    with view.cast("B") as plain:
                        update(plain)
                except TypeError:
                    # Not contiguous, empty, or of a format that only its own library knows.
                    update(view.tobytes())
        except (TypeError, ValueError):
            update(_NOT_A_BUFFER + _text(type(buffer).__name__))

    # -- subscribers

    def subscribe(self, callback: Callable[[AuditEvent], object]) -> Callable[[], None]:
        """Calls `callback` with every event from now on, before the operation continues.

        Args:
            callback: a plain function. It should be quick: it runs in the task that does the I/O.
                If it raises an Exception, that is logged (logger "trio_uring") and the function is
                not called again; the operation and the digest go on.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """

        def call(event: AuditEvent) -> None:  # the same callback may be subscribed twice
            callback(event)

        def unsubscribe() -> None:
            self._subscribers = tuple([other for other in self._subscribers if other is not call])

        self._subscribers = (*self._subscribers, call)
        return unsubscribe

    def log_to(self, logger: Any) -> Callable[[], None]:
        """Logs every event from now on: errors and timeouts as warnings, everything else as debug.

        Args:
            logger: a logging.Logger or LoggerAdapter, which gets a message and, as `extra`, the
                attributes `event_number`, `event_kind`, `operation`, `address`, `sizes`, `error`
                and `outcome`. Or a structlog logger (anything else that has the methods `debug` and
                `warning`), which gets the event "network <operation> <kind>" and the same values as
                key-value pairs.

        Returns:
            A function that ends the logging.
        """
        if isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
            return self.subscribe(functools.partial(_log_plainly, logger))
        return self.subscribe(functools.partial(_log_structured, logger))

    def _publish(self, event: AuditEvent) -> None:
        for call in self._subscribers:
            try:
                call(event)
            except Exception:
                self._subscribers = tuple(
                    [other for other in self._subscribers if other is not call]
                )
                _log.exception(
                    "a subscriber of trio_uring's audit failed and will not be called again; "
                    "event: %s",
                    event,
                )


def _head(kind: str, operation: str, address: Any, count: int) -> bytes:
    """The encoding of an event's beginning; cached only for None and (str, int) addresses.

    In the cache, the first of equal keys would decide what is hashed for the others, and
    ("a", 80.0) is equal to ("a", 80).
    """
    if address is None or (type(address) is tuple and [*map(type, address)] == [str, int]):
        return _known_head(kind, operation, address, count)
    return _known_head.__wrapped__(kind, operation, address, count)


@functools.lru_cache(maxsize=1024)
def _known_head(kind: str, operation: str, address: Any, count: int) -> bytes:
    if (
        isinstance(address, tuple)
        and len(address) == 2
        and isinstance(address[0], str)
        and isinstance(address[1], int)
    ):
        text = f"{str.__str__(address[0])} {address[1]:d}"  # the value of a str enum, not its name
    else:
        text = "" if address is None else _ADDRESS_IN_MEMORY.sub("at 0x...", str(address))
    return _text(kind) + _text(operation) + _text(text) + count.to_bytes(8, "big")


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "backslashreplace")
    return len(data).to_bytes(8, "big") + data


def _describe(error: BaseException) -> str:
    try:
        text = _ADDRESS_IN_MEMORY.sub("at 0x...", str(error))
    except Exception:  # this must not replace the error itself
        text = "(without a text)"
    return f"{type(error).__name__}: {text}"


def _is_serious(event: AuditEvent) -> bool:
    return event.outcome in ("failed", "timed_out")


def _values(event: AuditEvent) -> dict[str, Any]:
    return {
        "event_number": event.number,
        "event_kind": event.kind,
        "operation": event.operation,
        "address": event.address,
        "sizes": event.sizes,
        "error": event.error,
        "outcome": event.outcome,
    }


def _log_plainly(logger: Any, event: AuditEvent) -> None:
    level = logging.WARNING if _is_serious(event) else logging.DEBUG
    if logger.isEnabledFor(level):
        message, args = "network %s %s %s", [event.operation, event.kind, event.address]
        if event.kind == "failure":
            message, args = message + " %s", [*args, event.error]
        elif event.sizes:
            message, args = message + " %d bytes", [*args, sum(event.sizes)]
        logger.log(level, message, *args, extra=_values(event))


def _log_structured(logger: Any, event: AuditEvent) -> None:
    log = logger.warning if _is_serious(event) else logger.debug
    log(f"network {event.operation} {event.kind}", **_values(event))
