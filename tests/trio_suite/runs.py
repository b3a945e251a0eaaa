"""One run of trio's tests in a child process, and its result.

Rules of this file: a child that hangs is killed, and its run has failed; nothing is judged here. A
test that has failed while its process waited for a processor is run again: some of trio's compare
real times with the clock, and say nothing on a machine that is busy with other things.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trio_uring import RingUnavailableError
from trio_uring._ring.uring import UringRing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODES = ("sockets", "streams")
BACKENDS = ("uring", "readiness")
STOCK = "stock"
MEASURES = ("driven", "used_ours", "made_streams", "submitted")  # properties of a Result
SECONDS_MAX = 300  # for a run that takes 35
WAITED_SECONDS_MAX = 0.2  # a test that has waited longer for a processor has not failed yet
AGAIN = 2  # times, at most
TESTS = "TRIO_SUITE_TESTS"  # the variable that says which tests a child is to run; unset: all
CHILD = Path(__file__).with_name("child.py")
_FINISHED = (0, 1)  # pytest's exit codes when every test was run, whatever came of it


@dataclass(frozen=True)
class Result:
    """What came of one test."""

    outcome: str
    """passed, failed or skipped."""
    seconds: float = 0.0
    failure: str = ""
    objects: Mapping[str, int] = field(default_factory=dict)
    """Sockets, streams and listeners of ours that it made, by class."""
    operations: int = 0
    """That it submitted to a ring of ours."""
    backends: Sequence[str] = ()
    faults: Sequence[str] = ()
    """What a driver of ours was found to have done wrong after the test."""
    waited: float = 0.0
    """Seconds for which its thread was to run, and had no processor."""

    @property
    def driven(self) -> bool:
        """It had a run with a driver of ours."""
        return bool(self.backends)

    @property
    def used_ours(self) -> bool:
        """It made an object of ours, or submitted an operation."""
        return bool(self.objects or self.operations)

    @property
    def made_streams(self) -> bool:
        """It made a stream or listener of ours."""
        return any(name in self.objects for name in ("SocketStream", "SocketListener"))

    @property
    def submitted(self) -> bool:
        """It submitted an operation to a ring of ours."""
        return self.operations > 0


@dataclass(frozen=True)
class Run:
    """What came of one run of all tests."""

    mode: str
    backend: str | None
    results: Mapping[str, Result]
    """By `module::test`."""
    descriptors: int | None
    """How many more were open at the end than at the beginning. None: the run did not come to its
    end."""
    seconds: float
    output: str

    @property
    def name(self) -> str:
        return self.mode if self.backend is None else f"{self.mode}/{self.backend}"

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results.values())

    def counts(self, measure: str) -> dict[str, int]:
        """How many tests of each of trio's test modules really used ours. `measure`: one of
        MEASURES."""
        counts: dict[str, int] = {}
        for test, result in self.results.items():
            module = test.partition("::")[0]
            counts[module] = counts.get(module, 0) + getattr(result, measure)
        return counts


def run(mode: str, backend: str | None = None, arguments: Sequence[str] = ()) -> Run:
    """Runs trio's tests in a child, and those that a busy machine has disturbed in another.

    Args:
        mode: stock, sockets (ours in place of trio.socket's) or streams (those, and our streams and
        listeners).
        backend: uring or readiness; None for stock.
        arguments: more of pytest's arguments.
    """
    whole = _run_tests(mode, backend, arguments)
    for _ in range(AGAIN):
        if not (disturbed := _disturbed(whole)):
            break
        again = _run_tests(mode, backend, arguments, disturbed)
        whole = dataclasses.replace(
            whole,
            results={**whole.results, **again.results},
            seconds=whole.seconds + again.seconds,
        )
    return whole


def _disturbed(run: Run) -> list[str]:
    """Its tests that have failed, and might not have on a machine that does nothing else."""
    return [
        test
        for test, result in run.results.items()
        if result.outcome == "failed" and result.waited > WAITED_SECONDS_MAX
    ]


def _run_tests(
    mode: str, backend: str | None, arguments: Sequence[str], tests: Sequence[str] = ()
) -> Run:
    """Runs these of trio's tests in a child, or all."""
    environment = dict(os.environ)
    if backend is not None:
        environment["TRIO_URING_BACKEND"] = backend
    if tests:
        environment[TESTS] = json.dumps(tests)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results")
        command = [sys.executable, "-I", str(CHILD), mode, str(file), *arguments]
        status, output = _run_child(command, environment)
        # The last line of a child that was killed may not be whole.
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    finished = status in _FINISHED and records and "descriptors" in records[-1]
    descriptors = records[-1]["descriptors"] if finished else None
    results = {record.pop("test"): Result(**record) for record in records if "test" in record}
    return Run(mode, backend, results, descriptors, time.monotonic() - began, output)


def _run_child(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int | None, str]:
    """The child's exit status, None if it was ended, and what it printed."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as exc:
        output = exc.stdout or b""
        return None, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def why_not_uring() -> str | None:
    """Why io_uring cannot be used on this machine. None: it can."""
    try:
        UringRing().close()
    except RingUnavailableError as exc:
        return str(exc)
    return None
