"""The command `python -m tests.trio_suite`, to be run in the repository's root.

Its exit status is 0 if each run is as good as stock trio's.

Rules of this file: it prints one line for each run, and then everything that is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys

import trio

from .judge import Floors, complaints, floor, load, raised, save, unfinished
from .runs import BACKENDS, MEASURES, MODES, STOCK, Run, run, why_not_uring

_ALL = [f"{mode}/{backend}" for mode in MODES for backend in BACKENDS]
_HEADS = (
    "",
    "passed",
    "failed",
    "skipped",
    "driven",
    "used ours",
    "made streams",
    "submitted",
    "operations",
    "seconds",
)
_COLUMNS = "{:<14} {:>6} {:>6} {:>7} {:>8} {:>9} {:>12} {:>9} {:>10} {:>7}"
_MEANINGS = """
driven        tests with a run that had a driver of ours
used ours     tests that made a socket, stream or listener of ours, or submitted an operation to a
              ring of ours
made streams  tests that made a stream or a listener of ours
submitted     tests that submitted an operation; operations: all of them together
75>=70 means 75, and there must not be fewer than 70: tests/trio_suite/floors.json
"""


def main() -> int:
    options = _parser().parse_args()
    arguments = ["-k", options.only] if options.only else []
    floors, names = load(), _possible(options.runs or _ALL)
    print(f"trio's own tests, trio {trio.__version__}\n{_MEANINGS}")
    print(_COLUMNS.format(*_HEADS))
    stock = _print_line(run(STOCK, arguments=arguments), floors)
    if why := "\n".join(unfinished(stock)):
        sys.exit(why)
    runs: list[Run] = []
    found: list[str] = []
    for name in names:
        swapped = _print_line(_run(name, arguments), floors)
        runs.append(swapped)
        found += [
            f"{name}: {why}" for why in complaints(stock, swapped, floors, whole=not options.only)
        ]
    if options.write:
        save(raised(floors, runs))
    for why in found:
        print(f"\n{why}")
    print(f"\ncomplaints: {len(found)}" if found else "\nas good as stock trio")
    return bool(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.trio_suite", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help=f"of {', '.join(_ALL)}; all of them if none is given"
    )
    parser.add_argument(
        "-k",
        dest="only",
        metavar="EXPRESSION",
        help="only tests that match; counts are not checked",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="take the lowest counts as the floors; a RUN can be given twice",
    )
    return parser


def _possible(names: list[str]) -> list[str]:
    """Those of the runs that this machine can do: all, if TRIO_URING_REQUIRE is 1."""
    if unknown := set(names) - set(_ALL):
        sys.exit(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(_ALL)}")
    if os.environ.get("TRIO_URING_REQUIRE") == "1":
        return names
    if why := why_not_uring():
        print(f"not on uring, which cannot be used here: {why}")
        return [name for name in names if not name.endswith("/uring")]
    return names


def _run(name: str, arguments: list[str]) -> Run:
    mode, backend = name.split("/")
    return run(mode, backend, arguments)


def _print_line(done: Run, floors: Floors) -> Run:
    measured = []
    for measure in MEASURES:
        count = sum(done.counts(measure).values())
        measured.append(
            f"{count}>={floor(floors, measure, done.name)}" if done.backend else f"{count}"
        )
    outcomes = [done.count(outcome) for outcome in ("passed", "failed", "skipped")]
    operations = sum(result.operations for result in done.results.values())
    print(
        _COLUMNS.format(done.name, *outcomes, *measured, operations, f"{done.seconds:.1f}"),
        flush=True,
    )
    return done


if __name__ == "__main__":
    sys.exit(main())
