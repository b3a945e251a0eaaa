"""What the tests of the simulated network share: the run, connected pairs, and how errors look.

Rules: every test runs under run_deterministically, on a clock that jumps; a time that is asserted
is one that the arguments imply. No test sleeps and hopes.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

import pytest
import trio

from trio_uring._network.simulated import SimulatedNetwork, run_deterministically

WHOLE: dict[str, Any] = {"short": 0.0, "race": 0.0}  # nothing at random


def simulated(function):
    """Runs an async test under run_deterministically, for several orders of tasks."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        for seed in range(3):
            run_deterministically(functools.partial(function, *args, **kwargs), seed=seed)

    del run.__wrapped__  # pytest-trio would look through it
    run.__signature__ = inspect.signature(function)
    return run


async def pair_of(
    network: SimulatedNetwork, dialler: str = "a", listener: str = "b"
) -> tuple[Any, Any]:
    """Two connected streams, the dialling end first."""
    async with await network.host(listener).bind((listener, 0)) as server:
        first = await network.host(dialler).dial(server.local_address)
        return first, await server.accept()


def fails(code: int) -> Any:
    return pytest.raises(OSError, match=os.strerror(code), check=lambda error: error.errno == code)


def broken_by(code: int) -> Any:
    return pytest.raises(
        trio.BrokenResourceError, check=lambda error: error.__cause__.errno == code
    )


async def transports(**options: Any) -> tuple[Any, Any]:
    return tuple(stream.transport for stream in await pair_of(SimulatedNetwork(**options)))


def elapsed() -> float:
    return trio.current_time()  # a MockClock starts at 0


async def fails_with(code: int, function: Any, *args: Any) -> None:
    with broken_by(code):
        await function(*args)


async def fails_closed(function: Any, *args: Any) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await function(*args)


async def after(seconds: float, function: Any, *args: Any) -> None:
    await trio.sleep(seconds)
    function(*args)
