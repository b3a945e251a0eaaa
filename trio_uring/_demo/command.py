"""`python -m trio_uring demo`: four acts, each on trio_uring and on trio, in about 15 seconds.

Rules of this file: an act that fails says why, and the others go on. Ctrl-C and SIGTERM end it in
order, with all of its processes.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

from .._driver.run import backend_info, check_variables
from .._errors import RingUnavailableError
from . import files_command
from .acts import ACTS
from .children import DemoError, pinned
from .options import add_arguments as add_arguments
from .rounds import STACKS, Outcome, perform
from .screen import Screen, footer, heading, title

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence

    from .acts import Act

ROUNDS = 4  # of each stack, in each act
START_SECONDS = 0.8  # of an act, about, for its processes


def run(arguments: argparse.Namespace) -> int:
    """Runs the demo, or `demo files`.

    Args:
        arguments: seconds and part, and those of `demo files`, as in options.py.

    Returns:
        The exit status: 0, or 1 if something failed.

    Raises:
        DemoError: it could not begin.
    """
    if arguments.part == "files":
        return files_command.run(arguments)
    return perform_all(ACTS, ROUNDS, round_seconds(arguments.seconds))


def round_seconds(seconds: float) -> float:
    """How long a round may take if all may take this long."""
    return max(0.0, seconds / len(ACTS) - START_SECONDS) / (ROUNDS * len(STACKS))


def perform_all(acts: Sequence[Act], rounds: int, seconds: float) -> int:
    """Performs these acts, with `rounds` of `seconds` for each stack. Returns the exit status.

    Raises:
        DemoError: there is no ring, and nothing else may be used.
        KeyboardInterrupt: it was interrupted; all processes have ended.
    """
    try:
        check_variables()
        backend = backend_info()
    except (RingUnavailableError, ValueError) as exc:
        raise DemoError(f"{getattr(exc, 'strerror', None) or exc}") from exc
    outcomes = [Outcome(act, rounds) for act in acts]
    with pinned() as server_cpu, Screen() as screen:
        screen.print(heading(backend, server_cpu))
        if not trio.run(_perform_all, outcomes, seconds, server_cpu, screen):
            raise KeyboardInterrupt
        screen.print(footer(rounds, seconds))
    return 1 if any(outcome.failed for outcome in outcomes) else 0


async def _perform_all(
    outcomes: list[Outcome], seconds: float, server_cpu: int, screen: Screen
) -> bool:
    """Whether it came to its end; if not, it was interrupted."""
    finished = False

    async def interrupt(signals: AsyncIterator[int]) -> None:
        await anext(signals)
        nursery.cancel_scope.cancel()

    # Not by KeyboardInterrupt, which could hit the code that ends the processes.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt, signals)
            for number, outcome in enumerate(outcomes, start=1):
                screen.print(title(number, outcome.act))
                screen.update(outcome)
                try:
                    await perform(outcome, seconds, server_cpu, screen.update)
                except (DemoError, OSError) as exc:
                    outcome.failed = str(exc)
                screen.end(outcome)
            finished = True
            nursery.cancel_scope.cancel()
    return finished
