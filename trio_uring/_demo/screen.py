"""What the demonstration prints: a chapter for each act, with a bar for each stack.

Rules of this file: on a terminal rich shows how far an act has come, if it is installed. Everywhere
else what it has found is printed in the end, without control characters. Both print the same words.
A line has at most 79 columns, but for what others say.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from typing import TYPE_CHECKING, Any

import trio

from .. import __version__
from .rounds import STACKS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from .._driver.backend import BackendInfo
    from .acts import Act
    from .rounds import Outcome

BAR_WIDTH = 24  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"
STYLES = {"trio": "bright_black", "trio_uring": "blue"}

Span = tuple[str, str]  # a text, and rich's name of a style
Line = list[Span]


def heading(backend: BackendInfo, server_cpu: int) -> list[Line]:
    """What runs where."""
    python = f"Python {platform.python_version()}"
    place = (
        f"the server is on CPU {server_cpu}, its clients are on others"
        if server_cpu >= 0
        else "the server and its clients share the CPUs"
    )
    lines: list[Line] = [
        [("Servers on trio_uring and on trio, under the same load. Less is better.", "bold")],
        [(f"trio_uring {__version__} on {_words(backend)}; trio {trio.__version__}; {python}", "")],
        [(f"{platform.system()} {platform.release()}; {place}", "")],
    ]
    if backend.reason is not None:
        lines.append([(f"Not on io_uring, because {backend.reason}", "bold")])
    return lines


def _words(backend: BackendInfo) -> str:
    return "io_uring" if backend.reason is None else backend.backend


def bar(share: float, blocks: bool) -> str:
    """A bar of this share of the width: of blocks, or of signs that every terminal has."""
    if not blocks:
        return "#" * max(1, round(share * BAR_WIDTH))
    eighths = max(1, round(share * BAR_WIDTH * 8))
    return EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def title(number: int, act: Act) -> list[Line]:
    """What an act is about to do."""
    return [[("", "")], [(f"{number}. {act.title}", "bold")], [(f"   {act.difference}", "")]]


def rows(outcome: Outcome, blocks: bool) -> list[Line]:
    """What an act has found so far, or in the end."""
    lines = [_row(stack, outcome, blocks) for stack in STACKS if stack in outcome.cpu]
    if outcome.failed:
        lines.append([(f"   failed: {outcome.failed}", "bold red")])
    elif outcome.complete:
        counted = outcome.act.checked.format(operations=outcome.operations, **outcome.counts)
        lines.append([(f"   {counted}", "green")])
    else:
        lines.append([(f"   {outcome.done} of {outcome.rounds * len(STACKS)} rounds", "")])
    return lines


def _row(stack: str, outcome: Outcome, blocks: bool) -> Line:
    cpu = outcome.cpu
    drawn = bar(cpu[stack] / max(cpu.values()), blocks)
    line = [
        (f"   {stack:10} {cpu[stack] * 1e6:8,.1f} us a {outcome.act.unit:8} ", ""),
        (f"{drawn:{BAR_WIDTH}}", STYLES[stack]),
    ]
    if stack == "trio_uring" and "trio" in cpu:
        line.append((f" {cpu[stack] / cpu['trio']:.2f} of trio's", "bold"))
    return line


def footer(rounds: int, seconds: float) -> list[Line]:
    """How it was measured, and what was not."""
    return [
        [("", "")],
        [(f"The server's CPU time: the least of {rounds} rounds of {seconds:.2g} s, in turn.", "")],
        [("Datagrams one at a time gain nothing; one connection and TLS gain less:", "")],
        [("docs/performance.md. To measure: python -m trio_uring bench", "")],
    ]


def _has_blocks(stream: Any) -> bool:
    try:
        EIGHTHS.encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


class Screen:
    """Standard output. Leaving the block gives the terminal back."""

    def __init__(self) -> None:
        self._blocks = _has_blocks(sys.stdout)
        self._console: Any = None
        self._live: Any = None  # while there is something to overwrite
        if sys.stdout.isatty() and importlib.util.find_spec("rich"):
            self._console = importlib.import_module("rich.console").Console(highlight=False)

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def update(self, outcome: Outcome) -> None:
        """Shows how far an act has come, where that can be overwritten."""
        if self._console is None:
            return
        if self._live is None:
            live: Any = importlib.import_module("rich.live")
            self._live = live.Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(_rich(rows(outcome, self._blocks)), refresh=True)

    def end(self, outcome: Outcome) -> None:
        """Prints what an act has found."""
        self._clear()
        self.print(rows(outcome, self._blocks))

    def print(self, lines: Sequence[Line]) -> None:
        if self._console is not None:
            self._console.print(_rich(lines), soft_wrap=True)
            return
        for line in lines:
            print("".join(text for text, _ in line).rstrip())
        sys.stdout.flush()

    def _clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _rich(lines: Sequence[Line]) -> Any:
    text: Any = importlib.import_module("rich.text").Text
    return text("\n").join(text.assemble(*line) for line in lines)
