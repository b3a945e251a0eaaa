"""What is seen while the rounds are made.

Rules of this file: it goes to standard error, because standard output is for the report. On a
terminal rich draws a bar, if it is installed; otherwise there is a line for each round.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from .figures import Round


def line_of(done: Round) -> str:
    """A round in one line."""
    load = f"at {done.offered:,.0f}/s" if done.offered else "saturated"
    text = (
        f"{done.workload:16} {done.peer:20} {load:14} {done.cpu_us:9.2f} us CPU, "
        f"{done.rate:11,.0f}/s, p99 {done.p99_us:9,.0f} us"
    )
    return f"{text}, dropped: {done.dropped}" if done.dropped else text


class Progress:
    """Counts rounds.

    Args:
        total: the rounds that there will be, if none is dropped.
    """

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        self._total = total
        self._done = 0
        if sys.stderr.isatty() and importlib.util.find_spec("rich"):
            console: Any = importlib.import_module("rich.console")
            progress: Any = importlib.import_module("rich.progress")
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=console.Console(stderr=True),
            )
            self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, done: Round) -> None:
        """Another round is done; a dropped one will be made again."""
        self._done += not done.dropped
        if self._bar:
            description = f"{done.workload} {done.peer}"
            self._bar.update(self._task, completed=self._done, description=description)
        else:
            print(f"[{self._done}/{self._total}] {line_of(done)}", file=sys.stderr, flush=True)
