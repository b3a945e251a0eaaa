"""The plots of a report, by matplotlib if it is installed.

Rules of this file: a plot shows a report's data and nothing else. Ours have one colour, the others
another.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .figures import Results

OURS, OTHERS, LIGHT = "#2563eb", "#9ca3af", "#d1d5db"
# file, title, field of a bar and field of its tail
PLOTS = (
    ("cpu", "CPU of the server for each operation (us, minimum; line: median)", "cpu_us"),
    ("latency", "Latency at the same fixed load (us, p50; line: p99)", "paced"),
)
FIELDS = {"cpu_us": ("cpu_us_min", "cpu_us_median"), "paced": ("paced_p50_us", "paced_p99_us")}


def _draw(axes: Any, workload: str, peers: Mapping[str, Mapping[str, float]], kind: str) -> None:
    bar, tail = FIELDS[kind]
    shown = {name: each for name, each in peers.items() if bar in each}
    names = list(shown)
    values = [shown[name][bar] for name in names]
    colors = [OURS if PEERS[name].module == "trio_uring" else OTHERS for name in names]
    axes.barh(names, values, color=colors)
    for row, name in enumerate(names):
        axes.plot([shown[name][bar], shown[name][tail]], [row, row], color="black", linewidth=1)
        axes.annotate(
            f" {shown[name][bar]:,.1f}", (max(shown[name][bar], shown[name][tail]), row),
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_title(workload, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the plots of this report into this folder; returns their files. Without matplotlib
    there are none."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    written = []
    results: Results = data["results"]
    for name, title, kind in PLOTS:
        shown = {
            workload: peers
            for workload, peers in results.items()
            if any(FIELDS[kind][0] in each for each in peers.values())
        }
        if not shown:
            continue
        rows = (len(shown) + 1) // 2
        figure, grid = pyplot.subplots(
            rows, 2, figsize=(12, 0.6 + 3.2 * rows), squeeze=False, layout="constrained"
        )
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, (workload, peers) in zip(grid.flat, shown.items()):
            _draw(axes, workload, peers, kind)
        machine = data["machine"]
        figure.suptitle(f"{title}\n{machine['date'][:10]}, {machine['python']}", fontsize=11)
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
