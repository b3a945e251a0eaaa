"""What the demo prints: plain text, or by rich on a terminal.

Rules: rich is a stand-in that writes down what it is told, because it need not be installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from typing import Any

import pytest

from trio_uring._demo import screen as _screen
from trio_uring._demo.acts import ACTS
from trio_uring._demo.rounds import Outcome
from trio_uring._driver.backend import BackendInfo

pytestmark = pytest.mark.no_ring


def outcome_of(rounds: int = 1) -> Outcome:
    outcome = Outcome(ACTS[0], rounds)
    outcome.add("trio", 0.02, 1000, {})
    outcome.add("trio_uring", 0.008, 1000, {})
    return outcome


def text_of(lines: list[_screen.Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


@pytest.mark.parametrize("blocks", [True, False])
def test_a_bar_is_as_long_as_its_share(blocks: bool) -> None:
    full = _screen.bar(1.0, blocks)
    assert len(full) == _screen.BAR_WIDTH
    assert full == ("█" if blocks else "#") * _screen.BAR_WIDTH
    assert len(_screen.bar(0.5, blocks)) == _screen.BAR_WIDTH // 2
    assert len(_screen.bar(0.0, blocks)) == 1
    if blocks:
        assert _screen.bar(1 / 3 + 3 / 8 / _screen.BAR_WIDTH, blocks) == "█" * 8 + "▍"


def test_rows_of_an_act_that_is_over() -> None:
    ring, checked = text_of(_screen.rows(outcome_of(), False))[1:]
    assert ring.split() == [
        "trio_uring",
        "8.0",
        "us",
        "a",
        "message",
        "#" * 10,
        "0.40",
        "of",
        "trio's",
    ]
    assert checked == "   2,000 messages came back as they had been sent"


def test_rows_of_an_act_that_goes_on_or_fails() -> None:
    outcome = outcome_of(rounds=4)
    assert text_of(_screen.rows(outcome, False))[-1] == "   2 of 8 rounds"
    outcome.failed = "the load ended before its time"
    assert text_of(_screen.rows(outcome, False))[-1] == "   failed: the load ended before its time"
    nothing = Outcome(ACTS[0], 4)
    assert text_of(_screen.rows(nothing, False)) == ["   0 of 8 rounds"]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_everything_fits_a_terminal(act: Any) -> None:
    outcome = Outcome(act, 1)
    for stack in ("trio", "trio_uring"):
        counts = {"cancelled": 100, "answers": 32, "lost": 10}
        outcome.add(stack, 0.01 * 123_456, 123_456, counts)
    backend = BackendInfo("uring", None, "auto", ())
    for lines in (
        _screen.heading(backend, 0),
        _screen.title(1, act),
        _screen.rows(outcome, True),
        _screen.footer(4, 0.4),
    ):
        assert max(map(len, text_of(lines))) < 80


def test_the_heading_says_why_there_is_no_ring() -> None:
    backend = BackendInfo("readiness", "it is forbidden", "auto", ())
    words = text_of(_screen.heading(backend, -1))
    assert "on readiness;" in words[1]
    assert "share" in words[2]
    assert words[3] == "Not on io_uring, because it is forbidden"


def show(screen: _screen.Screen, outcome: Outcome) -> None:
    with screen:
        screen.print(_screen.title(1, outcome.act))
        screen.update(outcome)
        screen.end(outcome)


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "█"), ("ascii", "#")])
def test_plain_text_has_no_progress(
    encoding: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    show(_screen.Screen(), outcome_of())
    lines = raw.getvalue().decode(encoding).splitlines()
    assert lines[:3] == ["", f"1. {ACTS[0].title}", f"   {ACTS[0].difference}"]
    assert [line.count(sign) for line in lines[3:]] == [_screen.BAR_WIDTH, 9 + (sign == "#"), 0]
    assert all(line == line.rstrip() for line in lines)


class Rich:
    """Stands for rich.console, rich.live and rich.text; `told` is what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, str]] = []
        for name in ("console", "live", "text"):
            module: Any = types.ModuleType(f"rich.{name}")
            module.Console = lambda **_: self
            module.Live = lambda **_: self
            module.Text = Text
            monkeypatch.setitem(sys.modules, f"rich.{name}", module)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    def print(self, text: str, **_: Any) -> None:
        self.told.append(("print", text))

    def start(self) -> None:
        self.told.append(("start", ""))

    def stop(self) -> None:
        self.told.append(("stop", ""))

    def update(self, text: str, refresh: bool) -> None:
        assert refresh
        self.told.append(("update", text))


class Text(str):
    @staticmethod
    def assemble(*spans: tuple[str, str]) -> str:
        return "".join(text for text, _ in spans)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_rich_shows_progress_and_prints_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = Rich(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    show(_screen.Screen(), outcome_of())
    assert [what for what, _ in rich.told] == ["print", "start", "update", "stop", "print"]
    assert rich.told[2][1] == rich.told[4][1] == "\n".join(
        text_of(_screen.rows(outcome_of(), True))
    )  # fmt: skip
    assert sys.stdout.getvalue() == ""  # type: ignore[attr-defined]


def test_an_error_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = Rich(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with contextlib.suppress(KeyboardInterrupt), _screen.Screen() as screen:
        screen.update(outcome_of())
        raise KeyboardInterrupt
    assert [what for what, _ in rich.told] == ["start", "update", "stop"]
