"""What a run with ours has to be, beside one of stock trio: the same passes, and ours really used.

`expected.json` holds the floors, the counts of tests that really used ours, which must not fall: for each measure (see Result),
mode and one of trio's test modules. And the exceptions, for each run (streams/epoll): the tests that may fail, with the reason;
one that passes must go.

Rules of this file: pure; it reads runs and answers with sentences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from .runs import MEASURES, MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .runs import Result, Run

FILE = Path(__file__).with_name("expected.json")


class Expected(TypedDict):
    floors: dict[str, dict[str, dict[str, int]]]
    """By measure, mode and module."""
    exceptions: dict[str, dict[str, str]]
    """By run and test: the reason."""


def load() -> Expected:
    expected: Expected = json.loads(FILE.read_text())
    return expected


def save(expected: Expected) -> None:
    FILE.write_text(json.dumps(expected, indent=4) + "\n")


def complaints(stock: Run, run: Run, expected: Expected, *, whole: bool = True) -> list[str]:
    """Why `run`, with ours, is not as good as `stock`. Empty if it is.

    Args:
        whole: all tests were run, so that some must have used a ring, and the floors and exceptions can be checked.
    """
    if found := [*unfinished(stock), *unfinished(run)]:
        return found
    exceptions = expected["exceptions"].get(run.name, {})
    found = [*_failures(stock, run, exceptions), *_wrong_backends(run, whole), *_leaks(stock, run)]
    if whole:
        found += [*_unknown(stock, exceptions), *_below_floors(run, expected)]
    return found


def unfinished(run: Run) -> Iterator[str]:
    """Why a run cannot be judged."""
    if run.descriptors is None:
        yield f"{run.name} did not come to its end after {len(run.results)} tests:\n{run.output}"
    elif not run.count("passed"):
        yield f"{run.name}: no test has passed:\n{run.output}"


def _failures(stock: Run, run: Run, exceptions: dict[str, str]) -> Iterator[str]:
    for test, result in stock.results.items():
        if result.outcome != "passed":
            continue
        why = _why_not_passed(run.results.get(test))
        if why and test not in exceptions:
            yield f"{test} passes on stock trio: {why}"
        if test in exceptions and not why:
            yield f"{test} is an exception, and passes: take it out of {FILE.name}"


def _unknown(stock: Run, exceptions: dict[str, str]) -> Iterator[str]:
    for test in exceptions:
        if test not in stock.results or stock.results[test].outcome != "passed":
            yield f"{test} is an exception, and does not pass on stock trio: take it out of {FILE.name}"


def _why_not_passed(result: Result | None) -> str:
    if result is None:
        return "here it was not run"
    if result.outcome != "passed":
        return f"here it {'failed' if result.outcome == 'failed' else 'was skipped'}\n{result.failure}".rstrip()
    return "; ".join(result.faults)


def _wrong_backends(run: Run, whole: bool) -> Iterator[str]:
    used = {backend for result in run.results.values() for backend in result.backends}
    if used != {run.backend} and (whole or used):
        yield f"it ran on {', '.join(sorted(used)) or 'no ring'}, not on {run.backend}"


def _leaks(stock: Run, run: Run) -> Iterator[str]:
    assert run.descriptors is not None
    assert stock.descriptors is not None
    if run.descriptors > stock.descriptors:
        yield f"{run.descriptors} more descriptors are open at the end than at the beginning, {stock.descriptors} on stock trio"


def _below_floors(run: Run, expected: Expected) -> Iterator[str]:
    for measure in MEASURES:
        counts = run.counts(measure)
        for module, least in expected["floors"][measure][run.mode].items():
            if counts.get(module, 0) < least:
                yield f"{measure}: {counts.get(module, 0)} tests of {module}; they must not be fewer than {least}"


def floor(expected: Expected, measure: str, mode: str) -> int:
    """Of all modules together."""
    return sum(expected["floors"][measure][mode].values())


def raised(expected: Expected, runs: list[Run]) -> Expected:
    """`expected` with the counts of these runs as floors: of the runs of one mode, the lowest."""
    floors = {measure: dict(modes) for measure, modes in expected["floors"].items()}
    for measure in MEASURES:
        for mode in MODES:
            counts = [run.counts(measure) for run in runs if run.mode == mode]
            if counts:
                lowest = {module: min(count[module] for count in counts) for module in counts[0]}
                floors[measure][mode] = {module: count for module, count in lowest.items() if count}
    return {"floors": floors, "exceptions": expected["exceptions"]}
