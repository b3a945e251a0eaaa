"""The timeout rule that all streams of this package share.

A call's `timeout` is in seconds. None: the stream's default; math.inf: no limit.

Rules of this file: a limit applies to a whole call, however many receives or sends it makes; these
get no limit of their own.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import trio

from .abilities import abilities

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


_NO_LIMIT = contextlib.nullcontext()  # which has no state


def within(timeout: float | None) -> contextlib.AbstractContextManager[object]:
    """The cancel scope of a call with a time limit; no scope for None and math.inf."""
    return _NO_LIMIT if timeout is None or timeout == math.inf else trio.fail_after(timeout)


async def in_time(
    takes_timeout: bool, timeout: float | None, method: Callable[..., Awaitable[Any]], *args: object
) -> Any:
    """Calls a method with a time limit.

    A method that takes no `timeout`, as those of trio's own streams, runs inside a cancel scope.
    """
    if takes_timeout:
        return await method(*args, timeout=timeout)
    with within(timeout):
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
