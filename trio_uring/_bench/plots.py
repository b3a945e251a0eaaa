"""The plots of a report, by matplotlib if it is installed.

Rules of this file: a plot shows a report's data and nothing else. Ours have one colour, the others
another. The summary is for those who do not know the names of workloads and peers.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .peers import PEERS
from .workloads import DEFAULT, GROUPS, KIB, MIB, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .figures import Results

OURS, THEIRS, PALE = "#2563eb", "#9ca3af", "#93b4f5"
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


SUMMARY = Plot(
    "summary",
    "CPU of an echo server for each message of 1 KiB, in microseconds: less is better",
    "cpu_us",
    ("1x1K", "50x1K", "500x1K", "5000x1K"),
    ("ring", "readiness", "trio", "uvloop", "c"),
)
NAMES = {  # of the summary's peers, for everybody
    "ring": "trio_uring", "readiness": "trio_uring without io_uring", "trio": "trio",
    "uvloop": "uvloop's streams", "c": "C with epoll",
}  # fmt: skip
LATENCY = Plot("latency", "Latency at the same fixed load (us, p50; line: p99)", "paced")
PLOTS = (Plot("cpu", CPU_TITLE, "cpu_us"), LATENCY)
OTHERS = tuple(name for name in GROUPS["all"] if name not in GROUPS["echo"])
DOCUMENT_PLOTS = (  # of the document, the first of README
    SUMMARY,
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
    axes.set_title(title_of(workload), fontsize=10)
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


def title_of(workload: str) -> str:
    """The title of a workload: its name, and for an echo what that means."""
    found = parse(workload)
    if found.kind != "echo":
        return workload
    size, unit = found.message_bytes, "bytes"
    for bytes_of, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size % bytes_of == 0:
            size, unit = size // bytes_of, name
            break
    return f"{workload}: {_connections(workload)}, {size} {unit}"


def _connections(workload: str) -> str:
    count = parse(workload).connections
    return f"{count:,} connection{'s' * (count > 1)}"


def _draw_summary(axes: Any, workload: str, peers: Mapping[str, Mapping[str, float]]) -> None:
    """One column: bars with their figures, and of ours the ratio to trio's."""
    bar, _ = FIELDS[SUMMARY.fields]
    colors = {"ring": OURS, "readiness": PALE}
    most = max(figures[bar] for figures in peers.values())
    for row, name in enumerate(NAMES):
        if name not in peers:
            continue
        value = peers[name][bar]
        axes.barh(row, value, color=colors.get(name, THEIRS), height=0.72)
        text = f" {value:,.1f}"
        if name in colors and "trio" in peers:
            text += f"  ({value / peers['trio'][bar]:.2f} of trio)"
        weight = "bold" if name == "ring" else "normal"
        axes.annotate(text, (value, row), va="center", fontsize=9, fontweight=weight)
    axes.set_title(_connections(workload), fontsize=11, loc="left")
    axes.set_yticks(range(len(NAMES)), list(NAMES.values()), fontsize=10)
    axes.set_ylim(len(NAMES) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * most)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def about(machine: Mapping[str, Any]) -> str:
    """When and where, in a line."""
    date, packages = machine["date"][:10], machine["packages"]
    versions = [f"{name} {packages[name]}" for name in ("trio", "uvloop") if name in packages]
    cpus = f"{machine['cpus']} CPU{'s' * (machine['cpus'] > 1)} ({machine['processor']})"
    return ", ".join([date, cpus, f"Linux {machine['kernel']}", machine["python"], *versions])


def _figure_of_summary(pyplot: Any, shown: Results, machine: Mapping[str, Any]) -> Any:
    figure, grid = _grid(pyplot, shown, (10, 0.8 + 1.8 * _rows(shown)), sharey=True)
    for axes, (workload, peers) in zip(grid, shown.items()):
        _draw_summary(axes, workload, peers)
    figure.suptitle(SUMMARY.title, fontsize=12, fontweight="bold")
    figure.supxlabel(about(machine), fontsize=9, color="#4b5563")
    return figure


def _rows(shown: Results) -> int:
    return (len(shown) + 1) // 2


def _grid(pyplot: Any, shown: Results, size: tuple[float, float], **options: Any) -> Any:
    """A figure in two columns, and the axes of each workload."""
    figure, grid = pyplot.subplots(
        _rows(shown), 2, figsize=size, squeeze=False, layout="constrained", **options
    )
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    return figure, grid.flat


def _figure_of(pyplot: Any, plot: Plot, shown: Results, machine: Mapping[str, Any]) -> Any:
    figure, grid = _grid(pyplot, shown, (12, 0.6 + 3.2 * _rows(shown)))
    for axes, (workload, peers) in zip(grid, shown.items()):
        _draw(axes, workload, peers, plot.fields)
    figure.suptitle(f"{plot.title}\n{about(machine)}", fontsize=11)
    return figure


def draw(data: Mapping[str, Any], folder: Path, plots: Sequence[Plot] = PLOTS) -> list[Path]:
    """Writes these plots of this report into this folder; returns their files. Without matplotlib
    there are none."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    written = []
    for plot in plots:
        shown = _shown(plot, data["results"])
        if not shown:
            continue
        if plot is SUMMARY:
            figure = _figure_of_summary(pyplot, shown, data["machine"])
        else:
            figure = _figure_of(pyplot, plot, shown, data["machine"])
        written.append(folder / f"{plot.name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
