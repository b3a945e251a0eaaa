"""The child process: trio's own tests in pytest as trio runs them, with ours swapped in, and a line of JSON for each test.

    python -I child.py stock|sockets|streams FILE [PYTEST ARGUMENTS]

Rules of this file: a test gets ours by the public switch alone, `trio.run(..., instruments=[trio_uring.Enable()])`; what it
made and submitted is counted, never changed. No plugin, no setting and no conftest of this repository applies. It imports
nothing of this package, so that the process can be isolated (-I).
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
import trio
from trio._core import _run

import trio_uring
from trio_uring import _driver, _enable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUITE = (
    "test_socket",
    "test_highlevel_socket",
    "test_highlevel_open_tcp_stream",
    "test_highlevel_open_tcp_listeners",
    "test_highlevel_open_unix_stream",
    "test_highlevel_ssl_helpers",
    "test_ssl",
    "test_dtls",
    "test_highlevel_serve_listeners",
)

OURS = (trio_uring.UringSocket, trio_uring.SocketStream, trio_uring.SocketListener)

# trio runs the tasks of a pass in a random order, on which it can depend whether a test comes to its operations. Another seed,
# another order.
SEED = os.environ.get("TRIO_URING_SEED", "0")

# What trio's pyproject.toml says, and --run-slow as in its CI.
SETTINGS = """[pytest]
addopts =
    --strict-markers --strict-config --import-mode=importlib -p trio._tests.pytest_plugin
    --run-slow --tb=short -p no:cacheprovider
faulthandler_timeout = 60
filterwarnings = error
xfail_strict = true
markers =
    redistributors_should_skip: tests that should be skipped by downstream redistributors
"""


class Usage:
    """What the current test has made of ours, and the drivers that it has had."""

    def __init__(self) -> None:
        self.objects: Counter[str] = Counter()
        self.drivers: list[_driver.Driver] = []

    def watch(self) -> None:
        _tell_of_each_call(_enable, "_init_socket", self._count)  # which in an enabled run initialises every trio socket
        for cls in OURS[1:]:
            _tell_of_each_call(cls, "__init__", self._count)
        _tell_of_each_call(_driver.Driver, "__init__", self.drivers.append)

    def _count(self, made: object) -> None:
        if isinstance(made, OURS):
            self.objects[type(made).__name__] += 1

    def take(self) -> dict[str, Any]:
        """The counts since the last call."""
        taken = {
            "objects": dict(self.objects),
            "operations": sum(sum(driver.ring.counters.submitted) for driver in self.drivers),
            "backends": sorted({driver.ring.info.backend for driver in self.drivers}),
            "faults": [fault for driver in self.drivers for fault in _faults(driver)],
        }
        self.objects.clear()
        self.drivers.clear()
        return taken


def _tell_of_each_call(place: object, name: str, tell: Callable[[Any], object]) -> None:
    """Whenever `place.name` has been called, tells its first argument."""
    stock = getattr(place, name)

    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        tell(self)

    setattr(place, name, call)


def _faults(driver: _driver.Driver) -> Iterator[str]:
    if driver.ring.table or driver.queue:
        yield f"{len(driver.ring.table)} operations in flight and {len(driver.queue)} queued after the run"
    if driver.rescued:
        yield f"{driver.rescued} wake-ups were lost"
    if driver.failure is not None:
        yield f"the driver failed: {driver.failure!r}"


def swap_in(streams: bool) -> None:
    """Every trio.run from now on has ours enabled. trio's tests run with trio.run and, by trio_test, with trio._core.run."""
    stock = trio.run

    @functools.wraps(stock)
    def run(*args: Any, instruments: Any = (), **options: Any) -> Any:
        return stock(*args, instruments=[*instruments, trio_uring.Enable(streams=streams)], **options)

    for module in (trio, trio._core):
        vars(module)["run"] = run


class Recorder:
    """A pytest plugin that writes what came of each test, and at the end how many descriptors are left."""

    def __init__(self, file: TextIO, usage: Usage) -> None:
        self._file, self._usage = file, usage
        self._reports: list[pytest.TestReport] = []
        self._descriptors = 0

    def pytest_sessionstart(self) -> None:
        self._descriptors = _open_descriptors()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Iterator[None]:
        self._reports.clear()
        self._usage.take()
        name = f"{item.module.__name__.rpartition('.')[2]}::{item.nodeid.partition('::')[2]}"
        _run._r.seed(f"{SEED} {name}")
        began = time.monotonic()
        try:
            return (yield)
        finally:
            failures = [str(report.longrepr) for report in self._reports if report.failed]
            outcomes = {report.outcome for report in self._reports}
            outcome = next(kind for kind in ("failed", "skipped", "passed", "none") if kind in {*outcomes, "none"})
            self._write(
                test=name,
                outcome=outcome,
                seconds=time.monotonic() - began,
                failure="\n".join(failures),
                **self._usage.take(),
            )

    def pytest_sessionfinish(self) -> None:
        for _ in range(3):
            gc.collect()
        self._write(descriptors=_open_descriptors() - self._descriptors)

    def _write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(mode: str, path: str, *arguments: str) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest-trio would run the tests itself; ours is not under test here
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    usage = Usage()
    if mode != "stock":
        usage.watch()
        swap_in(streams=mode == "streams")
    with tempfile.TemporaryDirectory() as folder, open(path, "w", encoding="utf-8") as file:
        settings = Path(folder, "pytest.ini")
        settings.write_text(SETTINGS)
        os.chdir(folder)  # pytest looks into the directory where it is started for a conftest
        where = ["-c", str(settings), "--rootdir", folder, "--pyargs", *(f"trio._tests.{name}" for name in SUITE)]
        return pytest.main([*arguments, *where], plugins=[Recorder(file, usage)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
