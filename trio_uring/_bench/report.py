"""The report: what was found, as data, and the text that is made of the data.

Rules of this file: the text is made of the data alone, so that it can be made again from the JSON
file. A figure that is not there leaves its cell empty.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from .clocks import OTHER_SHARE_MAX, WAIT_SHARE_MAX
from .figures import conclude_all
from .peers import PEERS
from .schedule import PACED_SHARE
from .targets import judge
from .workloads import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .figures import Figures, Results
    from .schedule import Schedule

LOAD_BOUND_SHARE = 0.95  # of its core: the load generator may be what was measured
WIDTH = 100
METHOD = " ".join(
    f"""
All servers of a workload are up at once, and short rounds take turns in random order (the seed is
part of the command above). Every server is on one core and the load, a C program, on another; with
one connection both share a core, or the time that a core takes to wake up would be measured.

CPU is the server's time on the processor, user and system, of all its threads, for each operation;
the server is asleep whenever its clock is read, so that the time is exactly that of the operations
counted.

A round is dropped and made again if other work took more than {OTHER_SHARE_MAX:.0%} of it on these
cores (by the idle time in /proc/stat, less one tick a core), or if the server waited more than
{WAIT_SHARE_MAX:.0%} of it for a core of its own (by its schedstat).

At saturation every connection has its messages outstanding all the time. The fixed load is
{PACED_SHARE:.0%} of the slowest peer's rate, with arrivals at random, and its latency counts from
when a message was due. Rates and latencies are medians of the rounds.
""".split()
)

# field, title, how it is shown
COLUMNS = (
    ("cpu_us_min", "CPU us: min", "{:,.2f}"),
    ("cpu_us_p20", "p20", "{:,.2f}"),
    ("cpu_us_median", "median", "{:,.2f}"),
    ("to_trio", "min to trio", "{:.2f}"),
    ("to_uvloop", "to uvloop", "{:.2f}"),
    ("to_c", "to c", "{:.2f}"),
    ("rate", "rate/s", "{:,.0f}"),
    ("p50_us", "p50 us", "{:,.0f}"),
    ("p99_us", "p99 us", "{:,.0f}"),
    ("paced_cpu_us", "fixed load: CPU us", "{:,.2f}"),
    ("paced_p50_us", "p50 us", "{:,.0f}"),
    ("paced_p99_us", "p99 us", "{:,.0f}"),
    ("memory_bytes", "bytes each", "{:,.0f}"),
    ("alone_us", "CPU us alone", "{:,.2f}"),
    ("active_us", "CPU us among them", "{:,.2f}"),
    ("cancel_us", "CPU us each", "{:,.2f}"),
    ("import_ms", "import ms", "{:,.1f}"),
    ("run_us", "run of nothing us", "{:,.0f}"),
    ("rounds", "rounds", "{:.0f}"),
    ("dropped", "dropped", "{:.0f}"),
)


def gather(
    about: Mapping[str, Any], schedule: Schedule, extras: Results, skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Everything as data. `about`: the machine, the command, the seed; `extras`: the figures that
    are not of rounds."""
    found = {**conclude_all(schedule.rounds), **extras}
    results = {
        workload: {peer: peers[peer] for peer in PEERS if peer in peers}
        for workload, peers in found.items()
    }
    return {
        **about,
        "method": METHOD,
        "skipped": {**skipped, **schedule.skipped},
        "failed": {name: peers for name, peers in schedule.failed.items() if peers},
        "results": results,
        "targets": judged(results),
        "rounds": [vars(each) for each in schedule.rounds],
    }


def judged(results: Results) -> list[dict[str, Any]]:
    """What these results say of every target."""
    return [
        {
            "name": verdict.target.name,
            "limit": verdict.target.limit,
            "measured": verdict.measured,
            "outcome": verdict.outcome,
        }
        for verdict in judge(results)
    ]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width each; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def with_ratios(peers: Mapping[str, Figures]) -> dict[str, Figures]:
    """The figures, and the ratios of the minima of CPU time to those of the three baselines."""
    wider = {}
    for name, figures in peers.items():
        wider[name] = dict(figures)
        for baseline in ("trio", "uvloop", "c"):
            base = peers.get(baseline, {}).get("cpu_us_min")
            if base and "cpu_us_min" in figures:
                wider[name][f"to_{baseline}"] = figures["cpu_us_min"] / base
    return wider


def _workload_lines(name: str, peers: Mapping[str, Figures]) -> list[str]:
    wider = with_ratios(peers)
    shown = [each for each in COLUMNS if any(each[0] in figures for figures in wider.values())]
    rows = [["", *(title for _, title, _ in shown)]]
    for peer, figures in wider.items():
        cells = [form.format(figures[key]) if key in figures else "" for key, _, form in shown]
        rows.append([peer, *cells])
    timed = (
        f" (CPU for each {parse(name).unit})"
        if any(key == "cpu_us_min" for key, _, _ in shown)
        else ""
    )
    lines = ["", f"{name}{timed}", *table(rows)]
    lines += _warnings(peers, parse(name).one_core)
    offered = next((each["offered"] for each in peers.values() if "offered" in each), 0)
    return [*lines, f"Fixed load: {offered:,.0f}/s."] if offered else lines


def _warnings(peers: Mapping[str, Figures], one_core: bool) -> list[str]:
    """What makes figures mean less than they seem to."""
    full = (
        [] if one_core else [p for p in peers if peers[p].get("load_share", 0) > LOAD_BOUND_SHARE]
    )
    causes = {
        "The load generator's core was full; these may be faster": full,
        "Every round was disturbed, and all were used": [
            peer for peer in peers if peers[peer].get("rounds") == 0
        ],
        "Some threads were not held to the server's core": [
            peer for peer in peers if peers[peer].get("strays", 0) > 0
        ],
    }
    return [f"{cause}: {', '.join(names)}." for cause, names in causes.items() if names]


def _target_lines(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["target", "limit", "measured", "outcome"]]
    rows += [
        [each["name"], f"{each['limit']:.2f}", f"{each['measured']:.2f}", each["outcome"]]
        for each in targets
        if each["measured"] is not None
    ]
    lines = ["", *table(rows)] if len(rows) > 1 else []
    others = "; ".join(
        f"{each['name']} <= {each['limit']:.2f} ({each['outcome']})"
        for each in targets
        if each["measured"] is None
    )
    return [*lines, "", *textwrap.wrap(f"Targets that this run does not measure: {others}.", WIDTH)]


def _heading(data: Mapping[str, Any]) -> list[str]:
    machine = data["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"trio_uring bench, {machine['date']}",
        f"{machine['cpus']} CPUs ({machine['machine']}, {machine['processor']}), "
        f"{machine['memory_mib']:,} MiB, Linux {machine['kernel']}, {machine['python']}",
        packages,
        f"Repeat: {data['command']}",
        "",
        *textwrap.wrap(data["method"], WIDTH),
        "",
        *(f"{peer}: {PEERS[peer].what}" for peer in data["peers"]),
    ]


def text_lines(data: Mapping[str, Any]) -> list[str]:
    """The report as text."""
    lines = _heading(data)
    lines += [f"{name}: skipped, {why}" for name, why in data["skipped"].items()]
    for name, peers in data["results"].items():
        lines += _workload_lines(name, peers)
    for name, failed in data["failed"].items():
        lines += ["", *(f"{name}, {peer}: FAILED: {why}" for peer, why in failed.items())]
    return [*lines, *_target_lines(data["targets"])]
