"""What the demo prints: the progress bar and the report.

Rules of this file: a terminal gets one line that is overwritten; anything else gets a line for each
step, and no control characters. Every number has its unit, and every comparison says which way is
better.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .._driver.backend import BackendInfo
    from .files import File, Tally

MIB = 2**20
BAR_WIDTH = 30  # characters
LINE_SECONDS = 10.0  # between two lines of progress if there is no terminal
CALLS_SHOWN = 8  # system calls that are shown by name


@dataclass(frozen=True)
class Result:
    """What one round measured."""

    stack: str
    seconds: float
    client_cpu: float  # seconds
    server_cpu: float  # seconds
    hung_up: int
    tally: Tally
    statistics: dict[str, Any] | None


@dataclass(frozen=True)
class Trace:
    """What one run under strace counted."""

    stack: str
    calls: Counter[str]
    tally: Tally


class Progress:
    """A progress bar on a terminal; elsewhere a line now and then.

    It goes to standard error, because standard output is for the report.

    Args:
        total: the bytes of all steps that count.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._before = self._in_step = 0
        self._label = ""
        self._counted = True
        self._is_terminal = sys.stderr.isatty()
        self._line_at = 0.0

    def start(self, label: str, counted: bool = True) -> None:
        """Begins the next step. `counted`: its bytes are part of the total."""
        self._before += self._in_step
        self._in_step, self._label, self._counted = 0, label, counted
        self._line_at = 0.0
        self.show(0)

    def show(self, done: int) -> None:
        """Shows that `done` bytes of this step are done."""
        self._in_step = done if self._counted else 0
        now = time.monotonic()
        if self._is_terminal:
            self._write("\r" + self._line()[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        elif now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            self._write(self._line() + "\n")

    def _line(self) -> str:
        share = min(1.0, (self._before + self._in_step) / self._total)
        bar = "#" * int(share * BAR_WIDTH)
        return f"[{bar:-<{BAR_WIDTH}}] {share:4.0%}  {self._label}"

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._write("\r\x1b[K")


def print_heading(
    directory: Path,
    files: Sequence[File],
    clients: int,
    rounds: int,
    round_bytes: int,
    backend: BackendInfo,
) -> None:
    """Prints what is going to be done."""
    if sys.platform != "linux":
        raise AssertionError
    size = sum(file.size for file in files) / MIB
    print(f"Serving {len(files):,} files ({size:.1f} MiB) of {directory}")
    print(
        f"to {clients} clients over loopback: {rounds} round{'s' * (rounds > 1)} of "
        f"{round_bytes / MIB:.0f} MiB on each kind of stream, taking turns."
    )
    print(
        f"Linux {platform.release()}, Python {platform.python_version()}, trio {trio.__version__}, "
        f"{len(os.sched_getaffinity(0))} CPUs; the server has its own process and, if there is "
        "more than one, its own CPU."
    )
    why = "" if backend.reason is None else f", because {backend.reason}"
    print(
        f"trio_uring runs on {'io_uring' if backend.reason is None else backend.backend}{why}.",
        flush=True,
    )


def print_report(results: list[Result], traces: list[Trace], why_no_calls: str) -> int:
    """Prints the comparison and what happened. Returns the exit status."""
    rings = [result for result in results if result.stack == "trio_uring"]
    trios = [result for result in results if result.stack == "trio"]
    print(f"\n{'':34}{'trio_uring':>12}{'trio':>12}")
    _print_speed(rings, trios)
    _print_counts(rings, trios)
    _print_calls(traces, why_no_calls)
    _print_statistics(rings)
    return _print_verdict([result.tally for result in results] + [trace.tally for trace in traces])


def _row(name: str, ours: str, theirs: str, note: str = "") -> None:
    print(f"{name:34}{ours:>12}{theirs:>12}   {note}".rstrip())


def _comparison(gain: float) -> str:
    """Words for `gain`, which is above 1 where trio_uring is better."""
    if round(gain, 2) == 1:
        return "the same"
    return f"{gain:.2f}x better" if gain > 1 else f"{1 / gain:.2f}x worse"


def _print_speed(rings: list[Result], trios: list[Result]) -> None:
    rows: list[tuple[str, str, Callable[[Result], float], bool]] = [
        ("throughput, MiB/s", ".0f", lambda r: r.tally.bytes / MIB / r.seconds, True),
        ("files per second", ",.0f", lambda r: r.tally.files / r.seconds, True),
        (
            "server CPU per MiB, ms",
            ".2f",
            lambda r: r.server_cpu * 1e3 / (r.tally.bytes / MIB),
            False,
        ),
        ("server CPU per file, us", ".1f", lambda r: r.server_cpu * 1e6 / r.tally.files, False),
        (
            "client CPU per MiB, ms",
            ".2f",
            lambda r: r.client_cpu * 1e3 / (r.tally.bytes / MIB),
            False,
        ),
    ]
    for name, form, figure, more_is_better in rows:
        ours, theirs = median(map(figure, rings)), median(map(figure, trios))
        gain = ours / theirs if more_is_better else theirs / ours
        _row(name, format(ours, form), format(theirs, form), _comparison(gain))
    print(
        "  (medians of the rounds; all clients share one process, which also verifies checksums and"
    )
    print("  limits the throughput if the server has its own CPU: compare the server's CPU time)")


def _print_counts(rings: list[Result], trios: list[Result]) -> None:
    rows: list[tuple[str, Callable[[Result], float], str]] = [
        ("files received", lambda r: r.tally.files, ",.0f"),
        ("MiB received", lambda r: r.tally.bytes / MIB, ",.1f"),
        ("clients cancelled mid-file", lambda r: r.tally.cancelled, ",.0f"),
        ("files resumed", lambda r: r.tally.resumed, ",.0f"),
        ("connections lost, seen by server", lambda r: r.hung_up, ",.0f"),
        ("checksum failures", lambda r: len(r.tally.bad), ",.0f"),
    ]
    print()
    for name, figure, form in rows:
        _row(name, format(sum(map(figure, rings)), form), format(sum(map(figure, trios)), form))


def _print_calls(traces: list[Trace], why_not: str) -> None:
    print()
    if why_not:
        print(f"system calls: not counted: {why_not}")
        return
    ours, theirs = (trace.calls for trace in traces)
    per_file = [trace.calls.total() / trace.tally.files for trace in traces]
    note = _comparison(per_file[1] / per_file[0])
    _row("server's system calls per file", f"{per_file[0]:.2f}", f"{per_file[1]:.2f}", note)
    most = [name for name, _ in (ours + theirs).most_common(CALLS_SHOWN)]
    for name in dict.fromkeys([*most, "io_uring_enter"]):
        _row(f"  {name}", f"{ours[name]:,}", f"{theirs[name]:,}")
    print(
        f"  (counted by strace -f in a separate run over {traces[0].tally.files:,} files, "
        "including connecting and hanging up)"
    )


def _print_statistics(rings: list[Result]) -> None:
    """Prints the driver's own counts, from the server of the last round."""
    statistics = rings[-1].statistics
    if statistics is None:
        return
    s = statistics
    passes = max(1, s["passes"])
    used = ", ".join(f"{name} {counts['submitted']:,}" for name, counts in s["operations"].items())
    print("\nThe server's ring in its last round (trio_uring.current_statistics()):")
    print(f"  operations             {used}")
    enters = "io_uring_enter" if s["backend"] == "uring" else "flushes"
    print(
        f"  {enters:22} {s['enters']:,} in {passes:,} scheduler passes "
        f"({s['enters'] / passes:.2f} a pass)"
    )
    print(f"  completions per enter  {s['completions_per_enter']:.1f}")
    print(f"  short writes           {s['short_writes']:,}")
    print(
        f"  buffers exhausted      {s['buffers_exhausted']:,}; "
        f"submission queue full {s['sq_full']:,}; "
        f"completion queue overflows {s['cq_overflows']:,}"
    )
    if s["setup_flags"]:
        print(f"  setup flags            {' '.join(s['setup_flags'])}")


def _print_verdict(tallies: list[Tally]) -> int:
    bad = [name for tally in tallies for name in tally.bad]
    files = sum(tally.files for tally in tallies)
    if bad:
        print(
            f"\nFAILED: {len(bad):,} of {files:,} files came with a wrong checksum, "
            f"the first of them {bad[0]}."
        )
        return 1
    resumed = sum(tally.resumed for tally in tallies)
    print(
        f"\nAll {files:,} files came with the right checksum, "
        f"{resumed:,} of them in pieces after a cancellation."
    )
    return 0
