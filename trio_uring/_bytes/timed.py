"""The timeout rule that all streams of this package share.

A call's `timeout` is in seconds. None: the stream's default; math.inf: no limit.

Rules of this file: a limit applies to a whole call, however many receives or sends it makes; these
get no limit of their own.
"""

from __future__ import annotations

import contextlib
import math
import sys
from types import MethodType
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import enable_ki_protection

from .abilities import abilities

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType


_NO_LIMIT = contextlib.nullcontext()  # which has no state


class _Limit:
    """A cancel scope that ends with trio.TooSlowError, as trio.fail_after, and says of what.

    What the error says is found out when the time is up, and not before: until then this costs less
    than trio.fail_after, which is a generator.

    Args:
        seconds: the limit.
        on, what: as in `within`.
    """

    __slots__ = ("_on", "_scope", "_seconds", "_what")

    def __init__(self, seconds: float, on: object, what: str) -> None:
        self._scope = trio.move_on_after(seconds)
        self._seconds, self._on, self._what = seconds, on, what

    @enable_ki_protection
    def __enter__(self) -> None:
        self._scope.__enter__()

    @enable_ki_protection
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        caught = self._scope.__exit__(exc_type, exc, traceback)
        if self._scope.cancelled_caught:
            raise _too_slow(self._scope, self._seconds, self._on, self._what)
        return caught


def within(
    timeout: float | None, on: object, what: str
) -> contextlib.AbstractContextManager[object]:
    """The cancel scope of a call with a time limit; no scope for None and math.inf.

    Args:
        timeout: seconds.
        on, what: for the note of the error: what the call waits for, and the call's name; or a
            method of the former, and nothing.
    """
    return _NO_LIMIT if timeout is None or timeout == math.inf else _Limit(timeout, on, what)


def _too_slow(scope: trio.CancelScope, seconds: float, on: object, what: str) -> trio.TooSlowError:
    """The error of a limit that was reached, with a note: what waited, on what, for how long."""
    error = trio.TooSlowError()
    with contextlib.suppress(Exception):  # a user's class is asked, and the error matters more
        if isinstance(on, MethodType):
            what, on = on.__name__, on.__self__
        waited = trio.current_time() - (scope.deadline - seconds)
        task = trio.lowlevel.current_task().name
        note = (
            f"{what} waited {waited:.3f} s (its limit: {seconds:g} s) in task {task!r} on "
            f"{told(on)}"
        )
        if sys.version_info >= (3, 11):
            error.add_note(note)
        else:
            error.args = (note,)
    return error


def told(thing: object) -> str:
    """What a stream is called in a note: its class, its descriptor, its peer, as far as it says.

    A class of this package says it by a method `_told`; one that wraps a stream, like
    trio.SSLStream or a FrameStream, has it in one of the attributes below.
    """
    if isinstance(thing, str):
        return thing
    tell = getattr(type(thing), "_told", None)
    if tell is not None:
        return str(tell(thing))
    inner = getattr(thing, "transport_stream", None) or getattr(thing, "stream", None)
    name = type(thing).__name__
    return name if inner is None else f"{name} over {told(inner)}"


async def in_time(
    takes_timeout: bool, timeout: float | None, method: Callable[..., Awaitable[Any]], *args: object
) -> Any:
    """Calls a method with a time limit.

    A method that takes no `timeout`, as those of trio's own streams, runs inside a cancel scope.
    """
    if takes_timeout:
        return await method(*args, timeout=timeout)
    with within(timeout, method, ""):
        return await method(*args)


def check_timeout(timeout: float | None) -> None:
    """Checks a timeout, for calls that may end without opening a scope, which would check it.

    Raises:
        ValueError: it is negative, or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(
            f"timeout must be a number of seconds >= 0, math.inf or None, not {timeout!r}"
        )


def receive_default(stream: Any) -> float | None:
    """The stream's own default timeout for a receive."""
    timed = abilities(stream).times_receives
    timeout: float | None = getattr(stream, "receive_timeout", None) if timed else None
    return timeout
