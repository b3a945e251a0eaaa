"""What every observed thing does: it tells an observer (counters, an audit) of each operation, of
its attempt and then of its success or failure; and what it does not define is the wrapped thing's.

Rules of this package: a wrapper adds no checkpoint, holds no byte and changes no result and no
error. What the wrapped stream returned has happened and is a success, however late a cancellation
comes. Observers never see an iterator, and a stream's feature is there only if the wrapped stream
has it.
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
"""What is told of every operation. Its methods do not raise."""


def outcome_of(error: BaseException) -> Outcome:
    """What an operation's exception means. A destroyed coroutine (GeneratorExit) was cancelled, in
    its way."""
    if isinstance(error, trio.TooSlowError):
        return "timed_out"
    if isinstance(error, (trio.Cancelled, GeneratorExit)):
        return "cancelled"
    # Of an exception group, from a nursery inside of the operation.
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
    """Tells of the attempt and of a failure. The success is told by the caller, who knows what it
    brought."""
    observer.attempt(operation, address)
    try:
        return await method(*args)
    except BaseException as exc:
        observer.failure(operation, address, exc, outcome_of(exc))
        raise


class Forwarding:
    """What it does not define is the wrapped object's."""

    wrapped: Any

    def __getattr__(self, name: str) -> Any:
        # A property of ours that raised AttributeError is not to be looked for further down: it
        # knows why.
        if name == "wrapped" or hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name} here")
        return getattr(self.wrapped, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.wrapped!r}>"


class ObservedResource(Forwarding):
    """What a stream and a listener have in common: an address, and an end."""

    def __init__(self, wrapped: Any, observer: Observer, address: Address | None) -> None:
        self.wrapped = wrapped
        self._observer = observer
        self._address = address
        self._was_closed = False

    @enable_ki_protection
    async def aclose(self) -> None:
        if self._was_closed:  # trio.serve_listeners closes again what the handler has closed
            await self.wrapped.aclose()
            return
        self._was_closed = True
        await told(self._observer, "close", self._address, self.wrapped.aclose)
        self._observer.success("close", self._address)
