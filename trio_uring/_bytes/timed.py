"""The timeout rule that all streams of this package share, and how one layer knows of the layer
below what it can do.

A call's `timeout` is in seconds, for the whole call. None: the stream's default; math.inf: no
limit.

Rules of this file: what a stream can do is asked of its class. A wrapper that passes unknown
attributes on to what it wraps (`__getattr__`) would otherwise be bypassed, or be given arguments
that it does not take. A wrapper of this package (`Wrapper`) can do what the stream can that it
wraps, and that one is asked.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class TimedReceive:
    """Base of the streams whose receive calls take `timeout=`, with `receive_timeout` as the
    default."""


class TimedSend:
    """Base of the streams whose `send_all` takes `timeout=`, with `send_timeout` as the default."""


class Wrapper:
    """Base of the wrappers that can do what the stream can that they wrap, no more and no less."""

    wrapped: Any


def within(timeout: float | None) -> contextlib.AbstractContextManager[object]:
    """The scope of a call with a time limit; none for None and math.inf."""
    return (
        contextlib.nullcontext()
        if timeout is None or timeout == math.inf
        else trio.fail_after(timeout)
    )


async def in_time(
    takes_timeout: bool, timeout: float | None, method: Callable[..., Awaitable[Any]], *args: object
) -> Any:
    """Calls a method with a time limit, which one that takes no `timeout`, as of trio's own
    streams, is given from outside."""
    if takes_timeout:
        return await method(*args, timeout=timeout)
    with within(timeout):
        return await method(*args)


def set_default(stream: Any, name: str, seconds: float | None) -> None:
    """Sets a timeout that the stream has: another one would do nothing, without a word."""
    if not hasattr(stream, name):
        raise AttributeError(f"{type(stream).__name__} has no {name}")
    setattr(stream, name, seconds)


def check_timeout(timeout: float | None) -> None:
    """For calls that may end without a scope that would find it out.

    Raises:
        ValueError: it is negative, or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(
            f"timeout must be a number of seconds >= 0, math.inf or None, not {timeout!r}"
        )


def receive_default(stream: object) -> float | None:
    """The stream's own default for a receive."""
    timeout: float | None = (
        getattr(stream, "receive_timeout", None) if isinstance(stream, TimedReceive) else None
    )
    return timeout


def untimed(stream: object) -> dict[str, Any]:
    """Arguments for a receive whose time is already running: the stream must not add its own
    limit."""
    return {"timeout": math.inf} if isinstance(stream, TimedReceive) else {}


def sending_end(stream: Any) -> Any:
    """What a trio.StapledStream sends to; any other stream itself."""
    while (
        isinstance(stream, trio.StapledStream)
        and type(stream).send_all is trio.StapledStream.send_all
    ):
        stream = stream.send_stream
    return stream


def receiving_end(stream: Any) -> Any:
    """What a trio.StapledStream receives from; any other stream itself."""
    while (
        isinstance(stream, trio.StapledStream)
        and type(stream).receive_some is trio.StapledStream.receive_some
    ):
        stream = stream.receive_stream
    return stream


def unwrapped(stream: Any, end: Callable[[Any], Any]) -> Any:
    """What is below all wrappers and staples; `end`: receiving_end or sending_end."""
    stream = end(stream)
    while isinstance(stream, Wrapper):
        stream = end(stream.wrapped)
    return stream


def can_take_back(stream: object) -> bool:
    """Whether bytes can be put back in front of what it receives: it has `_put_back` and
    `receive_exactly` then."""
    below = unwrapped(stream, receiving_end)
    return isinstance(below, TimedReceive) and hasattr(type(below), "_put_back")


def can_send_eof(stream: object) -> bool:
    """Whether the end of what it sends can be told to its peer."""
    while isinstance(stream, Wrapper):
        stream = stream.wrapped
    return hasattr(type(stream), "send_eof")
