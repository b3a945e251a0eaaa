"""trio.run with a seeded scheduler and a clock that jumps: the same run each time.

Rules of this file: the only place that touches private names of trio's scheduler; what it changes
it puts back.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.testing

from .._trio import scheduler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from typing_extensions import TypeVarTuple, Unpack

    ArgsT = TypeVarTuple("ArgsT")

ResultT = TypeVar("ResultT")


def run_deterministically(
    async_fn: Callable[[Unpack[ArgsT]], Awaitable[ResultT]],
    *args: Unpack[ArgsT],
    seed: int = 0,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> ResultT:
    """trio.run, the same each time: time is a MockClock that jumps over every wait, and the seed
    decides which task runs first.

    It is exact as long as the program takes no time, randomness or input from outside: real
    sockets, threads, the `random` module's own generator, the order of a set of strings. The ring
    is outside, too. A program that waits for what never comes never ends: with trio.fail_after
    around it the clock jumps there, and the deadlock is a trio.TooSlowError at once.

    trio has no public switch for this. What is used is what trio's own integration with Hypothesis
    uses, private names in trio._core._run: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the tasks that
    can run before they are shuffled, and `_r` is the generator that shuffles them. Both are as
    before when it returns. They belong to the process: one run at a time.

    Args:
        async_fn, args: as of trio.run.
        seed: another one is another order of tasks.
        instruments: as of trio.run.

    Returns:
        What `async_fn` returns.

    Raises:
        RuntimeError: this version of trio has not got those names; or called from inside trio.
        Whatever `async_fn` raises.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed):
        return trio.run(async_fn, *args, clock=clock, instruments=instruments)


@contextlib.contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Within it, the order in which trio runs tasks comes from the seed. Errors: as of
    run_deterministically."""
    names = scheduler()
    generator = getattr(names, "_r", None)
    if not isinstance(generator, random.Random):
        raise RuntimeError(
            f"trio {trio.__version__} cannot be made deterministic: trio_uring does not know how "
            "in this version"
        )
    before, state = names._ALLOW_DETERMINISTIC_SCHEDULING, generator.getstate()
    names._ALLOW_DETERMINISTIC_SCHEDULING = True
    generator.seed(seed)
    try:
        yield
    finally:
        names._ALLOW_DETERMINISTIC_SCHEDULING = before
        generator.setstate(state)
