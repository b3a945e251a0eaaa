"""The report as docs/performance.md: a template whose placeholders are filled from the data.

    {{heading}}                       date, machine, versions
    {{command}}                       what makes the run again
    {{ratio WORKLOAD PEER BASELINE}}  of the minima of CPU time
    {{cpu NAME ...}}                  a table: CPU time by peer, of workloads and groups of them
    {{latency NAME ...}}              a table: p50 and p99 at the fixed load
    {{figures WORKLOAD}}              a table: what is not measured in rounds, by peer
    {{targets}}, {{missed}}           the figures to reach, and those that were not reached
    {{left out}}                      peers and workloads without figures, and why
    {{plot NAME}}                     an image, if it was drawn

Rules of this file: sentences are in the template, figures come from the data. What was not measured
says so.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .peers import PEERS
from .plots import DOCUMENT_PLOTS, draw
from .report import COLUMNS, WIDTH, judged
from .workloads import GROUPS, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .figures import Results

TEMPLATE = Path(__file__).with_name("performance.md")
PLACEHOLDER = re.compile(r"\{\{(left out|[a-z]+)(?: ([^}]*))?\}\}")
NOT_MEASURED = "not measured"
CPU = "cpu_us_min"
RATIOS = (("ring", "trio"), ("readiness", "trio"), ("ring", "uvloop"), ("ring", "c"))


def merge(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of several: every figure is the median of theirs, without those of disturbed
    rounds only, if there are others; the rest is that of the first. A workload need not be in all.
    """
    first = dict(reports[0])
    results: Results = {}
    for report in reports:
        for workload, peers in report["results"].items():
            for peer in peers:
                results.setdefault(workload, {})[peer] = {}
    for workload, into in results.items():
        for peer in into:
            peers = [each["results"].get(workload, {}) for each in reports]
            found = [figures[peer] for figures in peers if peer in figures]
            found = [figures for figures in found if figures.get("rounds") != 0] or found
            for key in dict.fromkeys(key for figures in found for key in figures):
                into[peer][key] = median(figures[key] for figures in found if key in figures)
    runs = max(sum(name in each["results"] for each in reports) for name in results)
    first |= {"results": results, "targets": judged(results), "runs": runs}
    return first


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _ratio(results: Results, workload: str, peer: str, baseline: str) -> str:
    figures = [results.get(workload, {}).get(name, {}).get(CPU) for name in (peer, baseline)]
    if figures[0] is None or not figures[1]:
        return ""
    return f"{figures[0] / figures[1]:.2f}"


class _Filler:
    """Fills the placeholders of one document.

    Args:
        plots: the names of the plots that were drawn, and their paths from the document.
    """

    def __init__(self, data: Mapping[str, Any], plots: Mapping[str, str]) -> None:
        self._data = data
        self._results: Results = data["results"]
        self._plots = plots

    def fill(self, found: re.Match[str]) -> str:
        name, words = found[1], (found[2] or "").split()
        ways: dict[str, Callable[..., str]] = {
            "heading": self._heading, "command": self._command, "ratio": self._ratio,
            "cpu": self._cpu, "latency": self._latency, "figures": self._figures,
            "targets": self._targets, "missed": self._missed, "left out": self._left_out,
            "plot": self._plot,
        }  # fmt: skip
        return ways[name](*words)

    def _names(self, words: Sequence[str], field: str) -> list[str]:
        """The workloads of these names and groups that have such a figure."""
        whole = [each for word in words for each in GROUPS.get(word, (word,))]
        return [
            name
            for name in dict.fromkeys(whole)
            if any(field in figures for figures in self._results.get(name, {}).values())
        ]

    def _peers(self, names: Sequence[str], field: str) -> list[str]:
        having = {
            peer for name in names for peer, each in self._results[name].items() if field in each
        }
        return [peer for peer in PEERS if peer in having]

    def _heading(self) -> str:
        machine, runs = self._data["machine"], self._data.get("runs", 1)
        packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        several = f" Figures are medians of {runs} runs." if runs > 1 else ""
        rounds = [
            figures["rounds"]
            for peers in self._results.values()
            for figures in peers.values()
            if "rounds" in figures
        ]
        if disturbed := rounds.count(0):
            several += (
                f" Other work ran: {disturbed} of {len(rounds)} results are of disturbed rounds "
                "only, and judged by no target."
            )
        return _wrapped(
            f"Measured {machine['date'][:10]} on {machine['cpus']} CPUs ({machine['machine']}, "
            f"{machine['processor']}) with {machine['memory_mib']:,} MiB; Linux "
            f"{machine['kernel']}, {machine['python']}, {packages}.{several}"
        )

    def _command(self) -> str:
        return str(self._data["command"])

    def _ratio(self, *words: str) -> str:
        return _ratio(self._results, *words) or NOT_MEASURED

    def _cpu(self, *words: str) -> str:
        names = self._names(words, CPU)
        if not names:
            return f"{' '.join(words)}: {NOT_MEASURED}."
        peers = self._peers(names, CPU)
        ratios = [pair for pair in RATIOS if set(pair) <= set(peers)]
        rows = [["", "unit", *peers, *(f"{peer} to {base}" for peer, base in ratios)]]
        for name in names:
            found = self._results[name]
            cells = [_number(found[peer][CPU]) if peer in found else "" for peer in peers]
            compared = [_ratio(self._results, name, *pair) for pair in ratios]
            rows.append([f"`{name}`", parse(name).unit, *cells, *compared])
        return markdown(rows) + self._disturbed(names)

    def _disturbed(self, names: Sequence[str]) -> str:
        """A sentence on figures that are of disturbed rounds only; empty if there are none."""
        found = []
        for name in names:
            all_peers = self._results[name]
            peers = [peer for peer, figures in all_peers.items() if figures.get("rounds") == 0]
            if peers:
                whose = "all" if len(peers) == len(all_peers) else ", ".join(peers)
                found.append(f"`{name}` ({whose})")
        return "\n\n" + _wrapped(f"Of disturbed rounds only: {', '.join(found)}.") if found else ""

    def _latency(self, *words: str) -> str:
        names = self._names(words, "paced_p50_us")
        if not names:
            return f"{' '.join(words)}: {NOT_MEASURED}."
        peers = self._peers(names, "paced_p50_us")
        rows = [["", "offered/s", *peers]]
        for name in names:
            found = self._results[name]
            offered = next(each["offered"] for each in found.values() if "offered" in each)
            cells = [
                f"{_number(each['paced_p50_us'])}, {_number(each['paced_p99_us'])}"
                if "paced_p50_us" in (each := found.get(peer, {}))
                else ""
                for peer in peers
            ]
            rows.append([f"`{name}`", f"{offered:,.0f}", *cells])
        return markdown(rows)

    def _figures(self, name: str) -> str:
        found = self._results.get(name)
        if not found:
            return f"{name}: {NOT_MEASURED}."
        shown = [each for each in COLUMNS if any(each[0] in figures for figures in found.values())]
        rows = [[f"`{name}`", *(title for _, title, _ in shown)]]
        for peer, figures in found.items():
            cells = [form.format(figures[key]) if key in figures else "" for key, _, form in shown]
            rows.append([peer, *cells])
        return markdown(rows)

    def _targets(self) -> str:
        rows = [["CPU of the server per operation", "limit", "measured", ""]]
        for each in self._data["targets"]:
            measured = "" if each["measured"] is None else f"{each['measured']:.2f}"
            outcome = "**missed**" if each["outcome"] == "missed" else each["outcome"]
            rows.append([each["name"], f"{each['limit']:.2f}", measured, outcome])
        return markdown(rows)

    def _missed(self) -> str:
        missed = [
            f"- {each['name']}: {each['measured']:.2f}, and {each['limit']:.2f} was to be reached."
            for each in self._data["targets"]
            if each["outcome"] == "missed"
        ]
        return "\n".join(missed) or "Of what was measured in quiet, nothing was missed."

    def _left_out(self) -> str:
        lines = [f"- {name}: {why}." for name, why in self._data["skipped"].items()]
        for name, peers in self._data["failed"].items():
            lines += [f"- {name}, {peer}: {why.splitlines()[0]}." for peer, why in peers.items()]
        return "\n".join(lines) or "Nothing was left out."

    def _plot(self, name: str) -> str:
        path = self._plots.get(name)
        return f"![{name}]({path})" if path else f"(No plot of `{name}`.)"


def write_document(data: Mapping[str, Any], path: Path) -> list[Path]:
    """Writes the document there and its plots into a directory beside it; returns the files."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(data, folder, DOCUMENT_PLOTS)
    filler = _Filler(data, {plot.stem: f"{folder.name}/{plot.name}" for plot in plots})
    path.write_text(PLACEHOLDER.sub(filler.fill, TEMPLATE.read_text()))
    return [path, *plots]
