"""What a run with ours must be, compared with stock trio: the same tests pass, and ours is really
used.

`floors.json` holds the counts of tests that really used ours, which must not fall: for each measure
(see Result), run and test module of trio's. There is no list of exceptions: what passes on stock
trio must pass here.

Rules of this file: judging is pure; it takes runs and returns sentences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .runs import MEASURES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .runs import Result, Run

FILE = Path(__file__).with_name("floors.json")

Floors = dict[str, dict[str, dict[str, int]]]
"""By measure, run (such as streams/uring) and module."""


def load() -> Floors:
    floors: Floors = json.loads(FILE.read_text())
    return floors


def save(floors: Floors) -> None:
    FILE.write_text(json.dumps(floors, indent=4) + "\n")


def complaints(stock: Run, run: Run, floors: Floors, *, whole: bool = True) -> list[str]:
    """Why `run`, with ours, is not as good as `stock`. Empty if it is.

    Args:
        whole: all tests were run, so that some must have used a ring, and the floors can be
            checked.
    """
    if found := [*unfinished(stock), *unfinished(run)]:
        return found
    found = [*_failures(stock, run), *_wrong_backends(run, whole), *_leaks(stock, run)]
    if whole:
        found += _below_floors(run, floors)
    return found


def unfinished(run: Run) -> Iterator[str]:
    """Why a run cannot be judged."""
    if run.descriptors is None:
        yield f"{run.name} did not come to its end after {len(run.results)} tests:\n{run.output}"
    elif not run.count("passed"):
        yield f"{run.name}: no test has passed:\n{run.output}"


def _failures(stock: Run, run: Run) -> Iterator[str]:
    for test, result in stock.results.items():
        if result.outcome == "passed" and (why := _why_not_passed(run.results.get(test))):
            yield f"{test} passes on stock trio: {why}"


def _why_not_passed(result: Result | None) -> str:
    if result is None:
        return "here it was not run"
    if result.outcome != "passed":
        what = "failed" if result.outcome == "failed" else "was skipped"
        return f"here it {what}\n{result.failure}".rstrip()
    return "; ".join(result.faults)


def _wrong_backends(run: Run, whole: bool) -> Iterator[str]:
    used = {backend for result in run.results.values() for backend in result.backends}
    if used != {run.backend} and (whole or used):
        yield f"it ran on {', '.join(sorted(used)) or 'no ring'}, not on {run.backend}"


def _leaks(stock: Run, run: Run) -> Iterator[str]:
    assert run.descriptors is not None
    assert stock.descriptors is not None
    if run.descriptors > stock.descriptors:
        yield (
            f"{run.descriptors} more descriptors are open at the end than at the beginning, "
            f"{stock.descriptors} on stock trio"
        )


def _below_floors(run: Run, floors: Floors) -> Iterator[str]:
    for measure in MEASURES:
        counts = run.counts(measure)
        for module, least in floors[measure].get(run.name, {}).items():
            if counts.get(module, 0) < least:
                yield (
                    f"{measure}: {counts.get(module, 0)} tests of {module}; "
                    f"they must not be fewer than {least}"
                )


def floor(floors: Floors, measure: str, name: str) -> int:
    """Of all modules together, for the run of that name."""
    return sum(floors[measure].get(name, {}).values())


def raised(floors: Floors, runs: list[Run]) -> Floors:
    """`floors` with the counts of these runs in their place: of several of one name, the lowest."""
    new = {measure: dict(names) for measure, names in floors.items()}
    for measure in MEASURES:
        for name in dict.fromkeys(run.name for run in runs):
            counts = [run.counts(measure) for run in runs if run.name == name]
            lowest = {module: min(count[module] for count in counts) for module in counts[0]}
            new[measure][name] = {module: count for module, count in lowest.items() if count}
    return new
