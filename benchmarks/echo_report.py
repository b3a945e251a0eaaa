"""What the echo benchmark asks for and what it concludes: scenarios, targets, medians and ratios.
Nothing runs here.

Rules of this file:

- Every figure is a median with its min..max over the runs; a ratio is the median of the ratios of
  the pairs (run i of one implementation against run i of trio, made back to back), so that a
  machine that drifts does not matter.
- A ratio says which way it goes: `rate` and `cpu` are how many times better than trio (higher is
  better), `p50` is how many times trio's latency (lower is better).
- Targets are promises about uring; other implementations are printed for reference and never
  judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echo_run import RunResult

BASELINE = "trio"
JUDGED = "uring"

# A load generator this busy may be what was measured: the ratios are then a lower bound of the
# difference.
LOAD_BOUND_SHARE = 0.95

# A server that waited this long for its core shared it with a stranger: its messages per second are
# not its own.
DISTURBED_SHARE = 0.05


@dataclass(frozen=True)
class Spread:
    """A median and what it is the median of."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}..{self.high:,.{digits}f}]"


@dataclass(frozen=True)
class Metric:
    """A figure that is compared with trio's."""

    title: str
    higher_is_better: bool
    ratio: Callable[[RunResult, RunResult], float]  # (this, trio's)


METRICS: Mapping[str, Metric] = {
    "rate": Metric(
        "msgs/s", True, lambda run, base: run.messages_per_second / base.messages_per_second
    ),
    "cpu": Metric(
        "messages per CPU second",
        True,
        lambda run, base: base.cpu_us_per_message / run.cpu_us_per_message,
    ),
    "p50": Metric("p50 latency", False, lambda run, base: run.p50_us / base.p50_us),
}


@dataclass(frozen=True)
class Target:
    metric: str
    bound: float

    @property
    def wanted(self) -> str:
        return f"{'>=' if METRICS[self.metric].higher_is_better else '<='} {self.bound:g}x"

    def is_met(self, ratio: float) -> bool:
        return ratio >= self.bound if METRICS[self.metric].higher_is_better else ratio <= self.bound


@dataclass(frozen=True)
class Scenario:
    name: str
    message_bytes: int
    connections: int
    targets: tuple[Target, ...]


FAST = (Target("rate", 1.6), Target("cpu", 1.6))
NO_SLOWER = (Target("rate", 1.0),)

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("1k-50", 1024, 50, FAST),
        Scenario("1k-500", 1024, 500, FAST),
        Scenario("64k-16", 64 << 10, 16, NO_SLOWER),
        Scenario("1m-1", 1 << 20, 1, NO_SLOWER),
        Scenario("ping-pong", 64, 1, (Target("p50", 1.15),)),
    )
}


@dataclass(frozen=True)
class Verdict:
    target: Target
    ratio: float
    met: bool


@dataclass(frozen=True)
class Comparison:
    """One implementation against trio in one scenario."""

    impl: str
    ratios: Mapping[str, Spread]
    verdicts: tuple[Verdict, ...]


def compare(
    scenario: Scenario, impl: str, runs: Sequence[RunResult], baseline: Sequence[RunResult]
) -> Comparison:
    """Run i is paired with the baseline's run i: they were made one after the other."""
    ratios = {
        name: Spread.of([metric.ratio(run, base) for run, base in zip(runs, baseline, strict=True)])
        for name, metric in METRICS.items()
    }
    targets = scenario.targets if impl == JUDGED else ()
    verdicts = (
        Verdict(t, ratios[t.metric].median, t.is_met(ratios[t.metric].median)) for t in targets
    )
    return Comparison(impl, ratios, tuple(verdicts))


def compare_all(scenario: Scenario, results: Mapping[str, Sequence[RunResult]]) -> list[Comparison]:
    """Every implementation but trio against trio; nothing if trio was not run."""
    if BASELINE not in results:
        return []
    return [
        compare(scenario, impl, runs, results[BASELINE])
        for impl, runs in results.items()
        if impl != BASELINE
    ]


# The columns of a scenario's table: title, figure, digits after the point.
COLUMNS: tuple[tuple[str, Callable[[RunResult], float], int], ...] = (
    ("msgs/s", lambda run: run.messages_per_second, 0),
    ("CPU us/msg", lambda run: run.cpu_us_per_message, 2),
    ("p50 us", lambda run: run.p50_us, 1),
    ("p99 us", lambda run: run.p99_us, 1),
    ("max us", lambda run: run.max_us, 0),
    ("server %", lambda run: run.server_cpu_share * 100, 0),
    ("load %", lambda run: run.load_cpu_share * 100, 0),
)


def table_lines(results: Mapping[str, Sequence[RunResult]]) -> list[str]:
    rows = [["", *(title for title, _, _ in COLUMNS)]]
    for impl, runs in results.items():
        rows.append(
            [
                impl,
                *(
                    Spread.of([figure(run) for run in runs]).show(digits)
                    for _, figure, digits in COLUMNS
                ),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def comparison_lines(comparison: Comparison) -> list[str]:
    ratios = ", ".join(
        f"{METRICS[name].title} {spread.show(2)}x" for name, spread in comparison.ratios.items()
    )
    lines = [f"{comparison.impl} / {BASELINE}: {ratios}"]
    for verdict in comparison.verdicts:
        title = METRICS[verdict.target.metric].title
        outcome = "met" if verdict.met else "MISSED"
        lines.append(f"  target {title} {verdict.target.wanted}: {verdict.ratio:.2f}x, {outcome}")
    return lines


def warning_lines(impl: str, runs: Sequence[RunResult]) -> list[str]:
    """What makes the figures of an implementation mean less than they seem to."""
    lines = []
    if statistics.median(run.load_cpu_share for run in runs) >= LOAD_BOUND_SHARE:
        lines.append(
            f"warning: {impl}: the load generator's core was full; "
            "the server may be faster than this"
        )
    if disturbed := sum(run.server_wait_share >= DISTURBED_SHARE for run in runs):
        lines.append(
            f"warning: {impl}: something else used the server's core "
            f"in {disturbed} of {len(runs)} runs"
        )
    if strays := sorted({name for run in runs for name in run.stray_threads}):
        lines.append(
            f"warning: {impl}: threads that were not held to the server's core: {', '.join(strays)}"
        )
    if impl == JUDGED and not all(run.has_ring for run in runs):
        lines.append(
            f"warning: {impl}: the server had no io_uring open; these are figures of its fallback"
        )
    return lines


def report_lines(scenario: Scenario, results: Mapping[str, Sequence[RunResult]]) -> list[str]:
    lines = table_lines(results)
    for comparison in compare_all(scenario, results):
        lines += comparison_lines(comparison)
    for impl, runs in results.items():
        lines += warning_lines(impl, runs)
    return lines


def report_json(scenario: Scenario, results: Mapping[str, Sequence[RunResult]]) -> dict[str, Any]:
    """The same as data: every run, and the ratios and verdicts drawn from them."""
    return {
        "message_bytes": scenario.message_bytes,
        "connections": scenario.connections,
        "runs": {impl: [vars(run) for run in runs] for impl, runs in results.items()},
        "comparisons": {
            comparison.impl: {
                "ratios": {name: vars(spread) for name, spread in comparison.ratios.items()},
                "targets": [
                    {
                        "metric": v.target.metric,
                        "wanted": v.target.wanted,
                        "ratio": v.ratio,
                        "met": v.met,
                    }
                    for v in comparison.verdicts
                ],
            }
            for comparison in compare_all(scenario, results)
        },
    }
