"""What every wrapper here does: it reports each operation to an observer (counters, an audit).

It reports the attempt, and then the success or failure. What it does not define is the wrapped
object's.

Rules of this package: a wrapper adds no checkpoint, holds no byte and changes no result and no
error. What the wrapped stream returned has happened and is a success, even if a cancellation comes
later. Observers never see an iterator, and a wrapper has a feature only if the wrapped stream has
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from ..audit import Audit
from ..metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._network.network import Address
    from ..metrics import Outcome

Observer = Metrics | Audit
"""What every operation is reported to. Its methods do not raise."""


def outcome_of(error: BaseException) -> Outcome:
    """What an operation's exception means. A destroyed coroutine (GeneratorExit) counts as
    cancelled."""
    if isinstance(error, trio.TooSlowError):
        return "timed_out"
    if isinstance(error, (trio.Cancelled, GeneratorExit)):
        return "cancelled"
    # The members of an exception group, from a nursery inside the operation.
    members = getattr(error, "exceptions", None)
    if isinstance(members, tuple) and all(outcome_of(member) == "cancelled" for member in members):
        return "cancelled"
    return "failed"


async def told(
    observer: Observer,
    operation: str,
    address: Address | None,
    method: Callable[..., Awaitable[Any]],
    *args: object,
) -> Any:
    """Reports the attempt, and a failure. The caller, who knows the result, reports success."""
    observer.attempt(operation, address)
    try:
        return await method(*args)
    except BaseException as exc:
        observer.failure(operation, address, exc, outcome_of(exc))
        raise


class Forwarding:
    """An object whose missing attributes are those of the object that it wraps."""

    wrapped: Any

    def __getattr__(self, name: str) -> Any:
        # If a property of ours raised AttributeError, do not ask the wrapped object: it was meant.
        if name == "wrapped" or hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name} here")
        return getattr(self.wrapped, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.wrapped!r}>"


class ObservedResource(Forwarding):
    """What a stream and a listener have in common: an address, and aclose."""

    def __init__(self, wrapped: Any, observer: Observer, address: Address | None) -> None:
        self.wrapped = wrapped
        self._observer = observer
        self._address = address
        self._was_closed = False

    @enable_ki_protection
    async def aclose(self) -> None:
        if self._was_closed:  # trio.serve_listeners closes what the handler has already closed
            await self.wrapped.aclose()
            return
        self._was_closed = True
        await told(self._observer, "close", self._address, self.wrapped.aclose)
        self._observer.success("close", self._address)
