"""What every test of trio_uring runs under.

Rules: a machine that refuses io_uring, or TRIO_URING_BACKEND=epoll, runs everything on epoll, and skips the tests that are
about the kernel's ring only: those with the marker `uring_only` and a reason. TRIO_URING_REQUIRE=1 makes a refusal an error. A
test that hangs ends the process after HANG_SECONDS with every stack, because a lost wake-up cannot be ended by a trio timeout.
Every async test ends with an empty ring and as many descriptors as it began with (`checked_run`). A test for which no ring
matters carries the marker `no_ring`: it runs without the C extension, too.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

from trio_uring import RingUnavailableError, backend_info
from trio_uring._ring import UringRing

pytest.register_assert_rewrite("streams.support")

from streams.support import checked_run  # noqa: E402  (after the rewrite is registered)

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG_SECONDS = 120

# The same examples every time. `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile("fixed")

_terminal = pytest.StashKey[int]()


def _why_no_ring() -> str | None:
    try:
        ring = UringRing()
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


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what is in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "no_ring: this test runs where there is no ring at all, too")
    config.addinivalue_line("markers", "uring_only(reason): this test is about the kernel's ring only")
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[_terminal] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_terminal])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_epoll = os.environ.get("TRIO_URING_BACKEND") == "epoll"
    no_uring, no_driver = _why_no_ring(), _why_no_driver()
    if no_uring and not on_epoll and os.environ.get("TRIO_URING_REQUIRE") == "1":
        raise pytest.UsageError(f"TRIO_URING_REQUIRE=1, and io_uring cannot be used: {no_uring}")
    for item in items:
        only = item.get_closest_marker("uring_only")
        if only and (on_epoll or no_uring):
            item.add_marker(pytest.mark.skip(reason=f"{only.args[0]} ({no_uring or 'the tests run on epoll'})"))
        if no_driver and not item.get_closest_marker("no_ring"):
            item.add_marker(pytest.mark.skip(reason=no_driver))
        if inspect.iscoroutinefunction(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.trio(run=checked_run), append=False)


@pytest.fixture(autouse=True)
def end_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=request.config.stash[_terminal])
    yield
    faulthandler.cancel_dump_traceback_later()
