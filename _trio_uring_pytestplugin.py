"""pytest fixtures: uring_driver_idle, simulated_network, echo_server. See docs/testing.md.

Rules of this file:

- It is an entry point: pytest imports it in every run of an environment that has trio_uring. So it
  imports only pytest and the standard library at the top, everything else inside the fixtures, and
  does nothing until one of its fixtures is used. It is beside the package, not in it, because
  importing a module of a package imports the package.
- Nothing here opens a ring for a test that does not use one.
- Hook wrappers are old-style: new-style ones would break every run with an old pluggy.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import socket
import sys
import zlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator

    from trio_uring._network.network import Address, NetworkListener, NetworkStream
    from trio_uring._network.simulated import SimulatedNetwork

PASSES_MAX = 1000  # passes of the scheduler within which operations must be over
# This many passes in a row without an operation are enough: by then a task that was just started
# has had its turn.
QUIET_PASSES = 3

_seed = pytest.StashKey[int]()
_in_background: ContextVar[bool] = ContextVar("a task of one of these fixtures", default=False)


# -- uring_driver_idle


class DriverIdle:
    """The value of the fixture `uring_driver_idle`."""

    async def check(self) -> None:
        """Fails the test now if the tasks that it has started are still waiting for operations.

        Descriptors are checked only after the test. The tasks of `echo_server` do not count.

        Raises:
            AssertionError: an operation is queued or in flight; the message says which.

        Cancellation: an ordinary checkpoint; nothing is changed.
        """
        __tracebackhide__ = True
        left = await _operations_left(background=False)
        if left:
            raise AssertionError("\n  ".join(["trio_uring is not idle:", *left]))


@pytest.fixture
def uring_driver_idle(request: pytest.FixtureRequest, _trio_test: None) -> DriverIdle:
    """Fails a pytest-trio test that leaves operations, buffers or descriptors behind.

    It checks when the test and all its async fixtures are over.
    """
    item: Any = request.node
    if hasattr(getattr(item, "obj", None), "hypothesis"):
        pytest.fail(
            "uring_driver_idle cannot check a test of Hypothesis: pytest-trio runs it for each "
            "example",
            pytrace=False,
        )
    runs = [
        marker.kwargs["run"]
        for marker in item.iter_markers("trio")
        if marker.kwargs.get("run") is not None
    ]
    run = runs[0] if runs else sys.modules["pytest_trio.plugin"].choose_run(item.config)
    # pytest-trio runs the test and all its fixtures in one call of this, so the order of fixtures
    # does not matter to the check.
    item.add_marker(pytest.mark.trio(run=_checked(run)), append=False)
    return DriverIdle()


def _checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `run`, which is trio.run or something like it. If it raises, nothing is checked."""

    def checked_run(async_fn: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        left: list[str] = []

        async def main() -> Any:
            result = await async_fn(*args)
            left.extend(await _operations_left(background=True))
            return result

        before = _open_descriptors()
        result = run(main, **kwargs)
        for fd, link in sorted(_open_descriptors().items()):
            if before.get(fd) != link:
                left.append(f"descriptor {fd}: {_describe(fd)}")
        if left:
            pytest.fail("\n  ".join(["this test left behind:", *left]), pytrace=False)
        return result

    return checked_run


async def _operations_left(background: bool) -> list[str]:
    """What is still queued or in flight after PASSES_MAX passes, in words.

    Args:
        background: include operations of our own tasks.
    """
    import trio

    ops: list[Any] = []
    quiet = 0
    for _ in range(PASSES_MAX):
        # The operation of a destroyed coroutine is cancelled in the next pass.
        await trio.lowlevel.checkpoint()
        ops = [op for op in _operations() if background or not _is_background(op.task)]
        quiet = 0 if ops else quiet + 1
        if quiet == QUIET_PASSES:
            break
    return [_describe_operation(op) for op in ops]


def _driver() -> Any:
    """The driver of this run; None if it has not used trio_uring yet.

    (current_driver() would open a ring.)
    """
    from trio_uring._driver.run import _current

    try:
        return _current.get()
    except LookupError:
        return None


def _operations() -> list[Any]:
    driver = _driver()
    return [] if driver is None else list(driver.pending())


def _is_background(task: Any) -> bool:
    return task is not None and task.context.get(_in_background, False)


def _describe_operation(op: Any) -> str:
    seen = _driver().describe(op)
    task = (
        "nobody (its coroutine was destroyed)"
        if seen.task_name is None
        else f"task {seen.task_name!r}"
    )
    buffers = "" if op.pin is None else ", with the caller's buffers pinned"
    what = f"operation {seen.opcode} on descriptor {seen.fd} ({_describe(seen.fd)})"
    return f"{what}, {seen.state.lower()}, {seen.age:.3f} s old, of {task}{buffers}"


def _open_descriptors() -> dict[int, str]:
    """The open descriptors and what they are; empty where there is no /proc."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)")
    return found


def _describe(fd: int) -> str:
    """What a descriptor is, with the two addresses of a socket."""
    try:
        what = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "closed"
    if what.startswith("socket:"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            what += f" {sock.family.name} {sock.getsockname()!r}"
            what += f" -> {sock.getpeername()!r}"
    return what


# -- simulated_network


@pytest.fixture
def simulated_network(request: pytest.FixtureRequest) -> Iterator[SimulatedNetwork]:
    """A SimulatedNetwork; its seed also orders trio's tasks, and a failure shows it.

    The seed comes from the test's id, so it is the same in every run. The environment variable
    TRIO_URING_SEED replaces it: an integer, or "random".
    """
    from trio_uring._network.deterministic import seeded_scheduler
    from trio_uring._network.simulated import SimulatedNetwork

    seed = _choose_seed(request.node.nodeid)
    request.node.stash[_seed] = seed
    with seeded_scheduler(seed):
        yield SimulatedNetwork(seed)


def _choose_seed(nodeid: str) -> int:
    wanted = os.environ.get("TRIO_URING_SEED", "")
    if not wanted:
        return zlib.crc32(nodeid.encode())
    if wanted == "random":
        return random.SystemRandom().getrandbits(32)
    try:
        return int(wanted)
    except ValueError:
        pytest.fail(
            f"TRIO_URING_SEED must be an integer or 'random', not {wanted!r}", pytrace=False
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Adds the seed of simulated_network to the report of a test that failed."""
    outcome = yield
    seed = item.stash.get(_seed, None)
    if seed is None or outcome.excinfo is not None:
        return
    report = outcome.get_result()
    told = getattr(report.longrepr, "sections", report.sections)
    # A plugin that is loaded under both of its names is asked twice.
    if report.failed and "simulated_network" not in [section[0] for section in told]:
        text = (
            f"The seed was {seed}. To repeat it: "
            f"TRIO_URING_SEED={seed} python -m pytest {shlex.quote(item.nodeid)}"
        )
        if hasattr(report.longrepr, "addsection"):  # shown even with --show-capture=no
            report.longrepr.addsection("simulated_network", text)
        else:
            report.sections.append(("simulated_network", text))


# -- echo_server


@pytest.fixture
async def echo_server(_trio_test: None) -> AsyncIterator[Address]:
    """The (host, port) of a server on the ring that echoes until the test is over.

    Raises:
        RingUnavailableError: io_uring is asked for and not available: see
            trio_uring.backend_info().
    """
    import trio

    from trio_uring import UringNetwork, current_statistics

    current_statistics()  # opens the ring here, where a failure can be reported
    listener = await UringNetwork().bind(("127.0.0.1", 0))
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(_serve_echo, listener, name="echo_server of trio_uring")
        yield listener.local_address
        nursery.cancel_scope.cancel()


async def _serve_echo(listener: NetworkListener) -> None:
    import trio

    _in_background.set(True)  # for this task, and those that it starts
    await trio.serve_listeners(_echo, [listener])


async def _echo(stream: NetworkStream) -> None:
    import trio

    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            await stream.send_all(data)


# -- what the fixtures need


@pytest.fixture
def _trio_test(request: pytest.FixtureRequest) -> None:
    """For fixtures that live in the trio run of the test."""
    needing = "trio_uring's fixtures uring_driver_idle and echo_server"
    plugin = sys.modules.get("pytest_trio.plugin")
    if plugin is None or not request.config.pluginmanager.is_registered(plugin):
        pytest.fail(f"{needing} need pytest-trio: pip install pytest-trio", pytrace=False)
    if request.node.get_closest_marker("trio") is None:
        pytest.fail(
            f"{needing} are for async tests that pytest-trio runs: mark the test with "
            "pytest.mark.trio, or set trio_mode = true in pytest's configuration",
            pytrace=False,
        )
