"""The setup that every test of trio_uring runs in.

Rules: if the machine refuses io_uring, or with TRIO_URING_BACKEND=epoll, everything runs by
readiness, and tests that are only about the kernel's ring are skipped: those with the marker
`uring_only` and a reason. TRIO_URING_REQUIRE=1 makes a refusal an error. A test that hangs ends the
process after HANG_SECONDS and shows every stack, because a trio timeout cannot end a lost wake-up.
Every async test ends with an empty ring and as many descriptors as it began with (`checked_run`). A
test for which the ring does not matter has the marker `no_ring`, and also runs without the C
extension. A long case has the marker `long`, and is skipped without `--long` (or
TRIO_URING_LONG=1). A test has the same name in every process, so that pytest-xdist can distribute
them.
"""

from __future__ import annotations

import faulthandler
import gc
import inspect
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from trio_uring import RingUnavailableError, backend_info
from trio_uring._driver import invariants
from trio_uring._driver.backend import open_uring

pytest.register_assert_rewrite("support")

# after the rewrite is registered
from support.long_cases import VARIABLE, examples, long_cases  # noqa: E402
from support.streams import checked_run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

# three times as much where long cases run: a machine that does other things is not a hang
HANG_SECONDS = 120
DESCRIPTORS = 20_000  # for all connections of a test at once
# one of its tests takes longer than all others: at the end one process would wait for it
FIRST = "test_trio_suite.py"
invariants.CHECKED = True  # the engine's own, in each pass
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")

_terminal = pytest.StashKey[int]()


def _why_no_ring() -> str | None:
    try:
        ring, _ = open_uring()
    except RingUnavailableError as exc:
        return str(exc)
    ring.close()
    return None


def _why_no_driver() -> str | None:
    try:
        backend_info()
    except RingUnavailableError as exc:
        return str(exc)
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help=f"run the long cases, too (or {VARIABLE}=1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--long"):
        os.environ[VARIABLE] = "1"
    load_profiles()
    allow_descriptors()
    # As shells start what is in the background.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "long: this test takes long, and runs with --long only")
    config.addinivalue_line(
        "markers", "hang_seconds(seconds): how long this test may take, if it is longer than others"
    )
    config.addinivalue_line("markers", "no_ring: this test runs where there is no ring at all, too")
    config.addinivalue_line(
        "markers", "uring_only(reason): this test is about the kernel's ring only"
    )
    config.addinivalue_line(
        "markers",
        "cpython_only(reason): PyPy does this in another way, with trio's own sockets, too",
    )
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[_terminal] = os.dup(2)


def allow_descriptors() -> None:
    """The soft limit is 1,024 on most machines, for the sake of select, which nothing here uses."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard > DESCRIPTORS:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def load_profiles() -> None:
    """The same examples every time. `--hypothesis-profile=search` looks for new ones."""
    fixed: dict[str, Any] = {
        "deadline": None,
        "derandomize": True,
        "database": None,
        "print_blob": True,
        # a second of the clock decides that, in which the machine may have done something else
        "suppress_health_check": [hypothesis.HealthCheck.too_slow],
    }
    hypothesis.settings.register_profile("fixed", max_examples=examples(100), **fixed)
    hypothesis.settings.register_profile(
        "search", deadline=None, max_examples=2000, print_blob=True
    )
    hypothesis.settings.load_profile("fixed")


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_terminal])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows how what is then run again (`.ci/tests`) had failed."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.write_sep("_", f"failed once: {report.nodeid}")
        terminalreporter.write_line(str(report.longreprtext))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_readiness = os.environ.get("TRIO_URING_BACKEND") in ("epoll", "readiness")
    no_uring, no_driver = _why_no_ring(), _why_no_driver()
    items.sort(key=lambda item: item.path.name != FIRST)
    if no_uring and not by_readiness and os.environ.get("TRIO_URING_REQUIRE") == "1":
        raise pytest.UsageError(f"TRIO_URING_REQUIRE=1, and io_uring cannot be used: {no_uring}")
    for item in items:
        if ADDRESS.search(item.nodeid):
            raise pytest.UsageError(f"this name is another one in each process: {item.nodeid}")
        if item.get_closest_marker("long") and not long_cases():
            item.add_marker(pytest.mark.skip(reason="a long case: --long"))
        only = item.get_closest_marker("uring_only")
        if only and (by_readiness or no_uring):
            why = no_uring or "the tests run by readiness"
            item.add_marker(pytest.mark.skip(reason=f"{only.args[0]} ({why})"))
        differs = item.get_closest_marker("cpython_only")
        if differs and sys.implementation.name != "cpython":
            item.add_marker(pytest.mark.skip(reason=differs.args[0]))
        if no_driver and not item.get_closest_marker("no_ring"):
            item.add_marker(pytest.mark.skip(reason=no_driver))
        if inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=checked_run), append=False)


@pytest.fixture(autouse=True, scope="session")
def make_hypothesis_random() -> None:
    """Hypothesis makes its random numbers when its first test begins. On Python 3.14 it warns that
    nobody refers to them if what does so was frozen before."""

    @hypothesis.settings(max_examples=1)
    @hypothesis.given(hypothesis.strategies.none())
    def first(_: None) -> None:
        pass

    first()


@pytest.fixture(autouse=True, scope="module")
def freeze_what_is_there(make_hypothesis_random: None) -> None:
    """What pytest and the modules before keep, they keep to the end: no collection in a test has to
    look at it again."""
    gc.collect()
    if hasattr(gc, "freeze"):  # PyPy has none
        gc.freeze()


@pytest.fixture(autouse=True)
def end_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    own = request.node.get_closest_marker("hang_seconds")
    seconds = own.args[0] if own else HANG_SECONDS * (3 if long_cases() else 1)
    faulthandler.dump_traceback_later(seconds, exit=True, file=request.config.stash[_terminal])
    yield
    faulthandler.cancel_dump_traceback_later()
