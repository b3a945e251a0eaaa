"""The child process: runs trio's own tests with ours swapped in, and prints a line of JSON for
each.

    python -I child.py stock|sockets|streams FILE [PYTEST ARGUMENTS]

Rules of this file: pytest runs the tests as trio does. A test gets ours only through the public
switch, `trio.run(..., instruments=[trio_uring.Enable()])`; what it made and submitted is counted,
never changed. No plugin, setting or conftest of this repository applies. It imports nothing from
the tests' package, so that the process can be isolated (-I).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import os
import sys
import tempfile
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
import trio
from trio._core import _run

import trio_uring
from trio_uring._driver import run as _driver
from trio_uring._streams import enable as _enable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Each package of trio's tests, and what of it is left out, with the reason. All else is run, what a
# later trio adds too.
PACKAGES: dict[str, dict[str, str]] = {
    "trio._core._tests": {},
    "trio._tests": {
        "test_exports": "asks mypy, pylint, jedi and pyright about trio's source, without a run"
    },
}

OURS = (trio_uring.UringSocket, trio_uring.SocketStream, trio_uring.SocketListener)

# The variable that says which tests to run; unset: all. See runs.py.
TESTS = "TRIO_SUITE_TESTS"

# trio runs the tasks of a pass in a random order, on which it can depend whether a test comes to
# its operations. Another seed, another order.
SEED = os.environ.get("TRIO_URING_SEED", "0")

# For one test: the longest takes 2. No timeout of trio's can end a lost wake-up.
TEST_SECONDS_MAX = 60

# What trio's pyproject.toml says, and --run-slow as in its CI.
SETTINGS = """[pytest]
addopts =
    --strict-markers --strict-config --import-mode=importlib -p trio._tests.pytest_plugin
    --run-slow --tb=short -p no:cacheprovider
filterwarnings = error
xfail_strict = true
markers =
    redistributors_should_skip: tests that should be skipped by downstream redistributors
"""


class Usage:
    """What the current test has made of ours, and the drivers that it has had."""

    def __init__(self) -> None:
        self.objects: Counter[str] = Counter()
        self.drivers: list[_Driven] = []

    def watch(self) -> None:
        # Which in an enabled run initialises every trio socket.
        _tell_of_each_call(_enable, "_init_socket", self._count)
        for cls in OURS[1:]:
            _tell_of_each_call(cls, "__init__", self._count)
        for driver in (_driver.RingDriver, _driver.ReadinessDriver):
            _tell_of_each_call(driver, "__init__", lambda made: self.drivers.append(_Driven(made)))

    def _count(self, made: object) -> None:
        if isinstance(made, OURS):
            self.objects[type(made).__name__] += 1

    def take(self) -> dict[str, Any]:
        """The counts since the last call."""
        taken = {
            "objects": dict(self.objects),
            "operations": sum(sum(driver.submitted) for driver in self.drivers),
            "backends": sorted({driver.backend for driver in self.drivers}),
            "faults": [fault for driver in self.drivers for fault in driver.faults()],
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


class _Driven:
    """What is known of a driver, which it does not keep: garbage is what some of trio's tests are
    about."""

    def __init__(self, driver: Any) -> None:
        self.backend: str = driver.backend.backend
        self.submitted: list[int] = driver.engine.counters.submitted
        self._driver = weakref.ref(driver)

    def faults(self) -> Iterator[str]:
        driver = self._driver()
        if driver is not None and (pending := driver.pending()):
            yield f"after the run, operations were left: {pending}"
        failure = None if driver is None else getattr(driver.engine, "failure", None)
        if failure is not None:
            yield f"the driver failed: {failure!r}"


def swap_in(streams: bool) -> None:
    """Every run from now on has ours enabled, whether a test starts it by trio, by trio.lowlevel or
    by trio._core."""
    for module, name in ((trio, "run"), (trio.lowlevel, "start_guest_run")):
        enabling = _enabling(vars(module)[name], streams)
        for place in (module, trio._core):
            vars(place)[name] = enabling


def _enabling(stock: Callable[..., Any], streams: bool) -> Callable[..., Any]:
    @functools.wraps(stock)
    def start(*args: Any, instruments: Any = (), **options: Any) -> Any:
        ours = [trio_uring.Enable(streams=streams), _Start()]
        return stock(*args, instruments=[*instruments, *ours], **options)

    return start


class _Start(trio.abc.Instrument):
    """Makes the driver at once, so that all of trio's tests run on it: else the first operation
    would."""

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None:  # the first such is the main task
            with contextlib.suppress(KeyError):  # the driver of a guest run spawns a task
                trio.lowlevel.remove_instrument(self)
            _driver.current_driver()


def modules() -> list[str]:
    """Names of the test modules that this trio has, sorted."""
    found = []
    for package, left_out in PACKAGES.items():
        folder = Path(trio.__file__).parent.joinpath(*package.split(".")[1:])
        found += [
            f"{package}.{path.stem}"
            for path in folder.glob("test_*.py")
            if path.stem not in left_out
        ]
    return sorted(found)


class Recorder:
    """A pytest plugin that writes what came of each test, and at the end how many descriptors are
    left."""

    def __init__(self, file: TextIO, usage: Usage) -> None:
        self._file, self._usage = file, usage
        self._terminal = os.dup(2)  # before pytest captures it
        self._reports: list[pytest.TestReport] = []
        self._descriptors = 0

    def pytest_sessionstart(self) -> None:
        self._descriptors = _open_descriptors()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if only := json.loads(os.environ.get(TESTS, "[]")):
            items[:] = [item for item in items if _name(item) in only]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Iterator[None]:
        self._reports.clear()
        self._usage.take()
        name = _name(item)
        _run._r.seed(f"{SEED} {name}")
        began, waited = time.monotonic(), _waited()
        faulthandler.dump_traceback_later(TEST_SECONDS_MAX, exit=True, file=self._terminal)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            failures = [str(report.longrepr) for report in self._reports if report.failed]
            outcomes = {report.outcome for report in self._reports}
            outcome = next(
                kind
                for kind in ("failed", "skipped", "passed", "none")
                if kind in {*outcomes, "none"}
            )
            self._write(
                test=name,
                outcome=outcome,
                seconds=time.monotonic() - began,
                waited=_waited() - waited,
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


def _name(item: Any) -> str:
    return f"{item.module.__name__.rpartition('.')[2]}::{item.nodeid.partition('::')[2]}"


def _waited() -> float:
    """For how many seconds the main thread has been ready to run, and had no processor."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # this kernel does not count it
        return 0.0


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(mode: str, path: str, *arguments: str) -> int:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = (
        "1"  # pytest-trio would run the tests itself; ours is not under test here
    )
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
        where = ["-c", str(settings), "--rootdir", folder, "--pyargs", *modules()]
        return pytest.main([*arguments, *where], plugins=[Recorder(file, usage)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
