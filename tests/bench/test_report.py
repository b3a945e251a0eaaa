"""The report, from rounds that nobody made: targets, text, JSON, plots.

Rules of this file: nothing is measured.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trio_uring._bench import document, machine, plots, progress
from trio_uring._bench.build import Programs
from trio_uring._bench.clocks import Cores
from trio_uring._bench.command import _write
from trio_uring._bench.figures import Round
from trio_uring._bench.report import gather, table, text_lines
from trio_uring._bench.rounds import Place
from trio_uring._bench.schedule import Plan, Schedule
from trio_uring._bench.targets import TARGETS, judge

pytestmark = pytest.mark.no_ring

CPU = {"c": 5.0, "uvloop": 10.0, "trio": 20.0, "ring": 8.0}
IDLE = {
    "ring": {"memory_bytes": 4000.0, "alone_us": 20.0, "active_us": 25.0},
    "trio": {"memory_bytes": 5000.0, "alone_us": 20.0, "active_us": 21.0},
}


def canned() -> dict[str, Any]:
    place = Place(Programs(Path("loadgen"), Path("floor")), Cores(0, 1))
    made = Schedule(place, Plan(1, 1, 0.1, 0.0, 7, 1), lambda done: None)
    for name, cpu in CPU.items():
        first = Round("50x1K", name, 0.0, 1e6 / cpu, cpu, 100.0, 200.0, 0.5)
        made.rounds += [first, replace(first, offered=5000.0, p99_us=123.0)]
    made.rounds[0] = replace(made.rounds[0], load_share=0.99, strays=1)
    made.failed = {"50x1K": {"rloop": "it serves nothing"}, "1x1K": {}}
    made.skipped = {"5000x1K": "5064 open files are needed"}
    about = {
        "command": "python -m trio_uring bench --seed 7",
        "machine": machine.describe(),
        "peers": list(CPU),
    }
    return gather(about, made, {"idle-10000": IDLE}, {"zuvloop": "zuvloop is not installed"})


def test_targets_have_names_of_their_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_targets_are_reached_missed_or_not_measured() -> None:
    said = {verdict.target.name: verdict for verdict in judge(canned()["results"])}
    assert said["50x1K: ring / trio"].outcome == "reached"
    assert said["50x1K: ring / trio"].measured == pytest.approx(0.4)
    assert said["50x1K: ring / c"].outcome == "missed"
    assert said["1x1K: ring / trio"].outcome == "not measured"
    assert said["memory of an idle connection, ring / trio"].measured == pytest.approx(0.8)
    assert said["one active among 10,000 idle, ring / the same alone"].outcome == "missed"
    assert said["relay-50x1K: ring / trio"].outcome == "not measured"
    scopes = said["50x1K: what a timeout scope adds, ring / trio"]
    assert scopes.measured is None


def test_figures_of_disturbed_rounds_are_judged_by_no_target() -> None:
    results = {"50x1K": {name: {"cpu_us_min": 1.0, "rounds": 0.0} for name in ("ring", "trio")}}
    said = {verdict.target.name: verdict for verdict in judge(results)}
    assert said["50x1K: ring / trio"].measured is None
    assert said["50x1K: ring / trio"].outcome == "disturbed"


def test_sent_frames_are_judged_against_joining_them_for_trio() -> None:
    results = {"send-frame-16x64": {"ring": {"cpu_us_min": 7.0}, "trio": {"cpu_us_min": 10.0}}}
    said = {verdict.target.name: verdict for verdict in judge(results)}
    assert said["send-frame-16x64: ring / trio"].outcome == "missed"
    assert said["send-frame-1x4K: ring / trio"].measured is None


def test_what_a_timeout_scope_adds() -> None:
    results = {
        "50x1K": {"ring": {"cpu_us_min": 10.0}, "trio": {"cpu_us_min": 20.0}},
        "scopes-50x1K": {"ring": {"cpu_us_min": 20.0}, "trio": {"cpu_us_min": 30.0}},
    }
    said = {verdict.target.name: verdict for verdict in judge(results)}
    assert said["50x1K: what a timeout scope adds, ring / trio"].measured == pytest.approx(1.0)


def test_the_text() -> None:
    data = canned()
    text = "\n".join(text_lines(data))
    assert "Repeat: python -m trio_uring bench --seed 7" in text
    assert data["machine"]["kernel"] in text
    ring = next(line for line in text.splitlines() if line.startswith("ring   "))
    assert ring.split()[:7] == ["ring", "8.00", "8.00", "8.00", "0.40", "0.80", "1.60"]
    assert "Fixed load: 5,000/s." in text
    assert "The load generator's core was full; these may be faster: c." in text
    assert "Some threads were not held to the server's core: c." in text
    assert "50x1K, rloop: FAILED: it serves nothing" in text
    assert "zuvloop: skipped, zuvloop is not installed" in text
    assert "5000x1K: skipped, 5064 open files are needed" in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_peers_are_in_the_order_of_their_table() -> None:
    assert list(canned()["results"]["50x1K"]) == ["ring", "trio", "uvloop", "c"]


def test_the_text_can_be_made_again_from_the_json_file() -> None:
    data = canned()
    assert text_lines(json.loads(json.dumps(data))) == text_lines(data)


def test_columns() -> None:
    assert table([["", "ab"], ["name", "1"]]) == ["      ab", "name   1"]


def test_a_document(tmp_path: Path) -> None:
    data = canned()
    path = tmp_path / "docs" / "speed.md"
    written = document.write_document(data, path)
    text = path.read_text()
    assert "{{" not in text
    assert "| `50x1K` | operation | 8.0 | 20.0 | 10.0 | 5.0 | 0.40 | 0.80 | 1.60 |" in text
    assert "- 50x1K: ring / c: 1.60, and 1.50 was to be reached." in text
    assert "| 50x1K: ring / c | 1.50 | 1.60 | **missed** |" in text
    assert "hypercorn, with `trio_uring.run` for `trio.run` | not measured |" in text
    assert "- zuvloop: zuvloop is not installed." in text
    assert data["command"] in text
    assert "| ring | 4,000 | 20.00 | 25.00 |" in text
    assert written[0] == path
    if importlib.util.find_spec("matplotlib"):
        assert [plot.name for plot in written[1:]] == ["summary.png", "echo.png", "latency.png"]
        assert "![echo](speed/echo.png)" in text


def test_a_document_of_several_reports_has_their_medians(tmp_path: Path) -> None:
    reports = [canned() for _ in range(3)]
    for report, cpu in zip(reports, (8.0, 6.0, 30.0)):
        report["results"]["50x1K"]["ring"]["cpu_us_min"] = cpu
    del reports[1]["results"]["idle-10000"]
    reports.append(canned())
    reports[3]["results"]["50x1K"]["ring"] |= {"cpu_us_min": 1.0, "rounds": 0.0}
    merged = document.merge(reports)
    assert merged["results"]["50x1K"]["ring"]["cpu_us_min"] == 8.0
    assert merged["results"]["idle-10000"]["ring"]["memory_bytes"] == 4000.0
    assert next(each for each in merged["targets"] if each["name"] == "50x1K: ring / trio")[
        "measured"
    ] == pytest.approx(0.4)
    merged["results"]["50x1K"]["trio"]["rounds"] = 0.0
    document.write_document(merged, tmp_path / "speed.md")
    text = " ".join((tmp_path / "speed.md").read_text().split())
    assert "1 of 4 results are of disturbed rounds only" in text
    assert "Of disturbed rounds only: `50x1K` (trio)." in text
    assert "medians of 4 runs" in text


def test_a_workload_need_not_be_in_all_reports() -> None:
    reports = [canned(), canned()]
    reports[0]["results"]["50x1K"]["ring"]["rounds"] = 0.0  # which are all there are
    del reports[1]["results"]["50x1K"]
    merged = document.merge(reports)
    assert merged["results"]["50x1K"]["ring"] == reports[0]["results"]["50x1K"]["ring"]
    assert merged["runs"] == 2


def test_the_document_is_that_of_the_template() -> None:
    docs = Path(__file__).parents[2] / "docs" / "performance.md"
    heads = [
        [line for line in path.read_text().splitlines() if line.startswith("#")]
        for path in (docs, document.TEMPLATE)
    ]
    assert heads[0] == heads[1]


@pytest.mark.parametrize(
    ("workload", "title"),
    [
        ("1x1M", "1x1M: 1 connection, 1 MiB"),
        ("5000x64", "5000x64: 5,000 connections, 64 bytes"),
        ("50x16K", "50x16K: 50 connections, 16 KiB"),
        ("tls-50x1K", "tls-50x1K"),
        ("idle-10000", "idle-10000"),
    ],
)
def test_titles_of_plots(workload: str, title: str) -> None:
    assert plots.title_of(workload) == title


def test_plots_say_when_and_where() -> None:
    about = plots.about(canned()["machine"])
    assert re.match(r"\d{4}-\d\d-\d\d, \d+ CPUs? \(", about)
    assert f"Linux {canned()['machine']['kernel']}" in about


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs matplotlib")
def test_plots(tmp_path: Path) -> None:
    written = plots.draw(canned(), tmp_path)
    assert [path.name for path in written] == ["cpu.png", "latency.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_targets_need_undisturbed_rounds_of_both_sides() -> None:
    results = {
        "50x1K": {name: {"cpu_us_min": 1.0, "rounds": 1.0} for name in ("ring", "trio")},
        "scopes-50x1K": {name: {"cpu_us_min": 2.0, "rounds": 0.0} for name in ("ring", "trio")},
    }
    said = {verdict.target.name: verdict for verdict in judge(results)}
    assert said["50x1K: what a timeout scope adds, ring / trio"].measured is None


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _write(canned(), tmp_path / "new" / "folder")
    out = capsys.readouterr().out
    assert "pip install 'trio-uring[bench]'" in out
    found = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert found == ["report.json", "report.txt"]
    assert (tmp_path / "new" / "folder" / "report.txt").read_text() in out


def test_a_line_for_each_round_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress.Progress(2) as bar:
        bar.step(Round("50x1K", "trio", 0.0, 1000.0, 20.0, 100.0, 200.0, 0.5, 0, "noise"))
        bar.step(Round("50x1K", "trio", 500.0, 1000.0, 20.0, 100.0, 200.0, 0.5))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("[0/2]")
    assert first.endswith("dropped: noise")
    assert second.startswith("[1/2]")
    assert "at 500/s" in second
