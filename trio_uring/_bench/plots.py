"""The plots of a report, by matplotlib if it is installed.

Rules of this file: a plot shows a report's data and nothing else. Ours have one colour, the others
another.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .peers import PEERS
from .workloads import DEFAULT, GROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .figures import Results

OURS, THEIRS = "#2563eb", "#9ca3af"
MAIN = ("ring", "readiness", "trio", "asyncio", "uvloop", "uvloop-protocol", "c")
CPU_TITLE = "CPU of the server for each operation (us, minimum; line: median)"


@dataclass(frozen=True)
class Plot:
    """One file.

    Attributes:
        name: of the file.
        fields: of FIELDS: what a bar is, and its tail.
        workloads, peers: what it shows; empty: all that there are.
    """

    name: str
    title: str
    fields: str
    workloads: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


LATENCY = Plot("latency", "Latency at the same fixed load (us, p50; line: p99)", "paced")
PLOTS = (Plot("cpu", CPU_TITLE, "cpu_us"), LATENCY)
OTHERS = tuple(name for name in GROUPS["all"] if name not in GROUPS["echo"])
DOCUMENT_PLOTS = (  # of the document, the first of README as well
    Plot("echo", CPU_TITLE, "cpu_us", DEFAULT, MAIN),
    Plot("others", CPU_TITLE, "cpu_us", OTHERS),
    LATENCY,
)
FIELDS = {"cpu_us": ("cpu_us_min", "cpu_us_median"), "paced": ("paced_p50_us", "paced_p99_us")}


def _draw(axes: Any, workload: str, peers: Mapping[str, Mapping[str, float]], kind: str) -> None:
    bar, tail = FIELDS[kind]
    names = list(peers)
    values = [peers[name][bar] for name in names]
    colors = [OURS if PEERS[name].module == "trio_uring" else THEIRS for name in names]
    axes.barh(names, values, color=colors)
    for row, name in enumerate(names):
        axes.plot([peers[name][bar], peers[name][tail]], [row, row], color="black", linewidth=1)
        axes.annotate(
            f" {peers[name][bar]:,.1f}", (max(peers[name][bar], peers[name][tail]), row),
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_title(workload, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shown(plot: Plot, results: Results) -> Results:
    """What of these results this plot shows."""
    found = {}
    for workload, peers in results.items():
        if not plot.workloads or workload in plot.workloads:
            chosen = {
                name: figures
                for name, figures in peers.items()
                if FIELDS[plot.fields][0] in figures and (not plot.peers or name in plot.peers)
            }
            if chosen:
                found[workload] = chosen
    return found


def draw(data: Mapping[str, Any], folder: Path, plots: Sequence[Plot] = PLOTS) -> list[Path]:
    """Writes these plots of this report into this folder; returns their files. Without matplotlib
    there are none."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    written = []
    results: Results = data["results"]
    for plot in plots:
        shown = _shown(plot, results)
        if not shown:
            continue
        rows = (len(shown) + 1) // 2
        figure, grid = pyplot.subplots(
            rows, 2, figsize=(12, 0.6 + 3.2 * rows), squeeze=False, layout="constrained"
        )
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, (workload, peers) in zip(grid.flat, shown.items()):
            _draw(axes, workload, peers, plot.fields)
        machine = data["machine"]
        figure.suptitle(f"{plot.title}\n{machine['date'][:10]}, {machine['python']}", fontsize=11)
        written.append(folder / f"{plot.name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
