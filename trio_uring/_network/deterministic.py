"""trio.run with a seeded scheduler and a clock that jumps: every run is the same.

Rules of this file: this is the only place that touches private names of trio's scheduler, and it
restores what it changes.
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
    """Like trio.run, but repeatable: a MockClock jumps over every wait, and a seed orders the
    tasks.

    Runs are the same as long as the program takes no time, randomness or input from outside: real
    sockets, threads, the `random` module's own generator, the order of a set of strings. The ring
    is outside, too. A program that waits for something that never comes never ends; with
    trio.fail_after around it, the clock jumps to the deadline, and the deadlock becomes a
    trio.TooSlowError at once.

    trio has no public switch for this. We use what trio's own integration with Hypothesis uses,
    private names in trio._core._run: `_ALLOW_DETERMINISTIC_SCHEDULING` sorts the runnable tasks
    before they are shuffled, and `_r` is the generator that shuffles them. Both are restored when
    it returns. They belong to the process, so only one run at a time is possible.

    Args:
        async_fn, args: as in trio.run.
        seed: another seed gives another order of tasks.
        instruments: as in trio.run.

    Returns:
        What `async_fn` returns.

    Raises:
        RuntimeError: this version of trio does not have those names, or this was called from inside
            trio.
        Others: whatever `async_fn` raises.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed):
        return trio.run(async_fn, *args, clock=clock, instruments=instruments)


@contextlib.contextmanager
def seeded_scheduler(seed: int) -> Iterator[None]:
    """Within the block, the seed decides the order in which trio runs tasks.

    Errors: as in run_deterministically.
    """
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
