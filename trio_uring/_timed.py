"""The timeout rule that all streams of this package share, and how one layer knows it of the layer below.

A call's `timeout` is in seconds, for the whole call. None: the stream's default; math.inf: no limit.

Rules of this file: what a stream can do is asked of its class. A wrapper that passes unknown attributes on to what it wraps
(`__getattr__`) would otherwise be bypassed, or be given arguments that it does not take.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import trio


class TimedReceive:
    """Base of the streams whose receive calls take `timeout=`, with `receive_timeout` as the default."""


class TimedSend:
    """Base of the streams whose `send_all` takes `timeout=`, with `send_timeout` as the default."""


def within(timeout: float | None) -> contextlib.AbstractContextManager[object]:
    """The scope of a call with a time limit; none for None and math.inf."""
    return contextlib.nullcontext() if timeout is None or timeout == math.inf else trio.fail_after(timeout)


def check_timeout(timeout: float | None) -> None:
    """For calls that may end without a scope that would find it out.

    Raises:
        ValueError: it is negative, or not a number.
    """
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds >= 0, math.inf or None, not {timeout!r}")


def receive_default(stream: object) -> float | None:
    """The stream's own default for a receive."""
    timeout: float | None = getattr(stream, "receive_timeout", None) if isinstance(stream, TimedReceive) else None
    return timeout


def untimed(stream: object) -> dict[str, Any]:
    """Arguments for a receive whose time is already running: the stream must not add its own limit."""
    return {"timeout": math.inf} if isinstance(stream, TimedReceive) else {}


def sending_end(stream: Any) -> Any:
    """What a trio.StapledStream sends to; any other stream itself."""
    while isinstance(stream, trio.StapledStream) and type(stream).send_all is trio.StapledStream.send_all:
        stream = stream.send_stream
    return stream


def receiving_end(stream: Any) -> Any:
    """What a trio.StapledStream receives from; any other stream itself."""
    while isinstance(stream, trio.StapledStream) and type(stream).receive_some is trio.StapledStream.receive_some:
        stream = stream.receive_stream
    return stream
