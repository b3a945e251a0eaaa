"""The echo benchmark: trio_uring against trio, on loopback, one core for the server and another for
the load.

    python benchmarks/echo.py [--scenario NAME]... [--impl NAME]... [--runs N] [--seconds S] [--json
    FILE]

README.md beside this file says what each figure means. This file is the command line and the order
of the runs; echo_run.py makes one run, echo_report.py draws the conclusions, echo_server.py and
loadgen.c are the two processes.

Rules of this file:

- Implementations take turns (A B A B ...), each run with a fresh server, so that whatever else the
  machine does falls on all of them alike.
- A scenario with a run that failed has no figures; the others go on, and the exit code is 1. A
  target that is missed is a result, not a failure: the exit code stays 0.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echo_report import BASELINE, JUDGED, SCENARIOS, Scenario, report_json, report_lines
from echo_run import Cores, Load, RunError, RunResult, compile_loadgen, run_once
from echo_server import IMPLEMENTATIONS, REQUIRED_MODULES

SECONDS_MAX = 600.0
RUNS_MAX = 1000
SPARE_FILES = 64  # what a process has open besides its connections

Results = dict[str, list[RunResult]]


def bounded_seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"from 0.1 to {SECONDS_MAX:g} seconds")
    return value


def bounded_runs(text: str) -> int:
    value = int(text)
    if not 1 <= value <= RUNS_MAX:
        raise argparse.ArgumentTypeError(f"from 1 to {RUNS_MAX} runs")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare echo servers: " + ", ".join(IMPLEMENTATIONS)
    )
    parser.add_argument(
        "--scenario", action="append", choices=SCENARIOS, help="repeatable; default: all of them"
    )
    parser.add_argument(
        "--impl",
        action="append",
        choices=IMPLEMENTATIONS,
        help="repeatable; default: trio and uring",
    )
    parser.add_argument(
        "--runs", type=bounded_runs, default=5, help="runs of each implementation (default: 5)"
    )
    parser.add_argument(
        "--seconds",
        type=bounded_seconds,
        default=3.0,
        help="seconds counted in each run (default: 3)",
    )
    parser.add_argument(
        "--warmup",
        type=bounded_seconds,
        default=1.0,
        help="seconds of warmup before that (default: 1)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write every run and every ratio to this file",
    )
    arguments = parser.parse_args(argv)
    # Asked for twice is asked for once; the order is kept, for it is the order of the turns.
    arguments.impl = list(dict.fromkeys(arguments.impl or (BASELINE, JUDGED)))
    arguments.scenario = list(dict.fromkeys(arguments.scenario or SCENARIOS))
    for impl in arguments.impl:
        module = REQUIRED_MODULES.get(impl)
        if module and importlib.util.find_spec(module) is None:
            parser.error(f"--impl {impl} needs {module}, which {sys.executable} cannot import")
    return arguments


def choose_cores() -> Cores:
    """The first two cores that this process may use; with one core the load would be measured as
    the server."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RunError("the benchmark needs two cores: one for the server, one for the load")
    return Cores(server=cores[0], load=cores[1])


def allow_open_files(wanted: int) -> None:
    """Raise the soft limit of open files, which the children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise RunError(f"{wanted} open files are needed, and the hard limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def environment() -> dict[str, Any]:
    """What the figures depend on, for whoever reads them later."""
    packages = {}
    for name in ("trio", "trio_uring", "uvloop"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": packages,
    }


def run_scenario(
    loadgen: Path, scenario: Scenario, arguments: argparse.Namespace, cores: Cores
) -> Results:
    load = Load(scenario.connections, scenario.message_bytes, arguments.seconds, arguments.warmup)
    allow_open_files(scenario.connections + SPARE_FILES)
    results: Results = {impl: [] for impl in arguments.impl}
    for _ in range(arguments.runs):
        for impl in arguments.impl:
            results[impl].append(run_once(loadgen, impl, load, cores))
    return results


def run_all(arguments: argparse.Namespace, cores: Cores) -> tuple[dict[str, Any], bool]:
    """Run and print scenario after scenario; the figures as data, and whether every run was
    clean."""
    scenarios: dict[str, Any] = {}
    clean = True
    with tempfile.TemporaryDirectory(prefix="echo-benchmark-") as folder:
        loadgen = compile_loadgen(Path(folder))
        # From here on this process keeps the load company: it must not take time from the server it
        # measures.
        os.sched_setaffinity(0, {cores.load})
        for name in arguments.scenario:
            scenario = SCENARIOS[name]
            print(
                f"\n{name}: {scenario.message_bytes:,} bytes x {scenario.connections} connections",
                flush=True,
            )
            try:
                results = run_scenario(loadgen, scenario, arguments, cores)
            except RunError as error:
                clean = False
                scenarios[name] = {"failed": str(error)}
                print(f"FAILED: {error}", flush=True)
            else:
                scenarios[name] = report_json(scenario, results)
                print("\n".join(report_lines(scenario, results)), flush=True)
    return scenarios, clean


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # The default action would skip every `finally`, and with them the killing of the children.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    described = environment()
    try:
        cores = choose_cores()
        print(", ".join(f"{key} {value}" for key, value in described.items()))
        print(
            f"{arguments.runs} runs each of {', '.join(arguments.impl)}, "
            f"{arguments.seconds:g} s counted after {arguments.warmup:g} s; "
            f"server on core {cores.server}, load on core {cores.load}; median [min..max]"
        )
        scenarios, clean = run_all(arguments, cores)
    except RunError as error:
        print(f"echo.py: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": described, "scenarios": scenarios}, indent=1) + "\n"
        )
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
