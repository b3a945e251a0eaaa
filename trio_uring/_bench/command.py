"""`python -m trio_uring bench`: servers side by side, tables and plots.

Rules of this file: standard output gets the report, standard error the progress. A target that is
missed is a result, not a failure.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .build import BuildError, compile_programs
from .clocks import choose_cores
from .document import merge, write_document
from .extras import able, measure_apart
from .machine import describe
from .options import add_arguments as add_arguments
from .options import list_lines, plan_of, workloads_of
from .peers import PEERS, choose
from .plots import draw
from .processes import RunError
from .progress import Progress
from .report import gather, text_lines
from .rounds import Place
from .schedule import Schedule
from .workloads import expand

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .figures import Results
    from .peers import Peer
    from .schedule import Plan
    from .workloads import Workload

PREFIX = "python -m trio_uring bench"
FAILED, IMPOSSIBLE = 1, 2  # exit statuses


def command_line(arguments: argparse.Namespace, plan: Plan, peers: Sequence[str]) -> str:
    """What makes the same run again: everything that was chosen, spelled out."""
    words = [*PREFIX.split(), *(["--quick"] if arguments.quick else [])]
    words += ["--rounds", str(plan.rounds), "--seconds", f"{plan.seconds:g}"]
    words += ["--seed", str(plan.seed), "--peers", *peers]
    return shlex.join([*words, "--workloads", *workloads_of(arguments)])


def _measure_apart(
    schedule: Schedule, workloads: Sequence[Workload], peers: Sequence[Peer]
) -> Results:
    results: Results = {}
    for workload in workloads:
        results[workload.name] = {}
        for peer in able(workload, peers):
            print(f"{workload.name} {peer.name}", file=sys.stderr, flush=True)
            try:
                figures = measure_apart(schedule.place, schedule.plan, workload, peer)
            except RunError as error:
                schedule.failed.setdefault(workload.name, {})[peer.name] = str(error)
            else:
                results[workload.name][peer.name] = figures
    return results


def _measure(
    schedule: Schedule, workloads: Sequence[Workload], peers: Sequence[Peer], progress: Progress
) -> Results:
    """The rounds go to the schedule; what is measured apart is returned."""
    with progress:
        schedule.run([each for each in workloads if not each.apart], peers)
    return _measure_apart(schedule, [each for each in workloads if each.apart], peers)


def _write(data: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(text_lines(data)) + "\n"
    print(text, end="")
    (folder / "report.txt").write_text(text)
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    plots = draw(data, folder)
    names = ", ".join(["report.txt", "report.json", *(plot.name for plot in plots)])
    print(f"\nWritten to {folder}: {names}.")
    if not plots:
        print("For plots, install matplotlib: pip install 'trio-uring[bench]'")


def _write_document(data: dict[str, Any], document: Path | None) -> None:
    if document is not None:
        print("Written: " + ", ".join(map(str, write_document(data, document))))


def _merge(arguments: argparse.Namespace) -> int:
    if arguments.document is None:
        print(f"{PREFIX}: --reports are for a --document", file=sys.stderr)
        return IMPOSSIBLE
    try:
        reports = [json.loads(path.read_text()) for path in arguments.reports]
    except (OSError, ValueError) as error:
        print(f"{PREFIX}: {error}", file=sys.stderr)
        return IMPOSSIBLE
    _write_document(merge(reports), arguments.document)
    return 0


def _run(arguments: argparse.Namespace, folder: Path) -> int:
    if sys.platform != "linux":
        raise AssertionError
    programs = compile_programs(folder)
    plan, place = plan_of(arguments), Place(programs, choose_cores())
    peers, skipped = choose(arguments.peers or PEERS)
    workloads = expand(workloads_of(arguments))
    in_rounds = [each for each in workloads if not each.apart]
    progress = Progress(sum(plan.count(each, peers) for each in in_rounds))
    schedule = Schedule(place, plan, progress.step)
    print(f"seed {plan.seed}", file=sys.stderr)
    # From here on this process keeps the load company: it must not take time from the server that
    # it measures.
    os.sched_setaffinity(0, {place.cores.load})
    extras = _measure(schedule, workloads, peers, progress)
    about = {
        "command": command_line(arguments, plan, [peer.name for peer in peers]),
        "plan": vars(plan),
        "machine": describe(),
        "peers": [peer.name for peer in peers],
    }
    output = arguments.output or Path(time.strftime("trio-uring-bench-%Y%m%d-%H%M%S"))
    data = gather(about, schedule, extras, skipped)
    _write(data, output)
    _write_document(data, arguments.document)
    return FAILED if any(schedule.failed.values()) else 0


def run(arguments: argparse.Namespace) -> int:
    """Measures what is asked for, and reports; returns the exit status."""
    if arguments.list:
        print("\n".join(list_lines()))
        return 0
    if arguments.reports:
        return _merge(arguments)
    if sys.platform != "linux" or not hasattr(os, "sched_getaffinity"):  # PyPy lacks it
        print(f"{PREFIX}: it measures by what only Linux and CPython have", file=sys.stderr)
        return IMPOSSIBLE
    before = signal.getsignal(signal.SIGTERM)
    # The default action would skip every `finally`, and with them the killing of the children.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    affinity = os.sched_getaffinity(0)
    try:
        with tempfile.TemporaryDirectory(prefix="trio-uring-bench-") as folder:
            return _run(arguments, Path(folder))
    except BuildError as error:
        print(f"{PREFIX}: {error}", file=sys.stderr)
        return IMPOSSIBLE
    except RunError as error:
        print(f"{PREFIX}: {error}", file=sys.stderr)
        return FAILED
    finally:
        os.sched_setaffinity(0, affinity)
        signal.signal(signal.SIGTERM, before)
