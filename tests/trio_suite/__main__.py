"""The command: `python -m tests.trio_suite`, in the repository's root. Exit status 0 if each run is as good as stock trio's.

Rules of this file: it prints one line for each run, and then what is wrong, whole.
"""

from __future__ import annotations

import argparse
import os
import sys

import trio

from .judge import above_floors, complaints, load, raised, save, unfinished
from .runs import BACKENDS, MODES, STOCK, Run, run, why_not_uring

_ALL = [f"{mode}/{backend}" for mode in MODES for backend in BACKENDS]
_HEADS = ("", "passed", "failed", "skipped", "used ours", "objects", "submitted", "operations", "seconds")
_COLUMNS = "{:<14} {:>6} {:>6} {:>7} {:>9} {:>7} {:>9} {:>10} {:>7}"


def main() -> int:
    options = _parser().parse_args()
    arguments = ["-k", options.only] if options.only else []
    expected, names = load(), _possible(options.runs or _ALL)
    print(f"trio's own tests, trio {trio.__version__}; used ours: tests that made objects of ours, or submitted operations")
    print(_COLUMNS.format(*_HEADS))
    stock = _print_line(run(STOCK, arguments=arguments))
    if why := "\n".join(unfinished(stock)):
        sys.exit(why)
    runs: list[Run] = []
    found: list[str] = []
    for name in names:
        swapped = _print_line(_run(name, arguments))
        runs.append(swapped)
        found += [f"{name}: {why}" for why in complaints(stock, swapped, expected, whole=not options.only)]
    if options.write:
        save(raised(expected, runs))
    elif not options.only:
        for swapped in runs:
            for higher in above_floors(swapped, expected):
                print(f"{swapped.name}: {higher} (--write raises it)")
    for why in found:
        print(f"\n{why}")
    print(f"\ncomplaints: {len(found)}" if found else "\nas good as stock trio")
    return bool(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.trio_suite", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(_ALL)}; all of them if none is given")
    parser.add_argument("-k", dest="only", metavar="EXPRESSION", help="only tests that match; counts are not checked")
    parser.add_argument("--write", action="store_true", help="take the lowest counts as the floors; a RUN can be given twice")
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


def _print_line(done: Run) -> Run:
    results = done.results.values()
    print(
        _COLUMNS.format(
            done.name,
            done.count("passed"),
            done.count("failed"),
            done.count("skipped"),
            sum(result.used_ours for result in results),
            sum(bool(result.objects) for result in results),
            sum(result.submitted for result in results),
            sum(result.operations for result in results),
            f"{done.seconds:.1f}",
        ),
        flush=True,
    )
    return done


if __name__ == "__main__":
    sys.exit(main())
