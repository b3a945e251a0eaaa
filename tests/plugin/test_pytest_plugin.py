"""The pytest plugin as a user runs it: each test here starts pytest in its own process.

Rules of this file: warnings are errors. The plugins are named one by one
(PYTEST_DISABLE_PLUGIN_AUTOLOAD), so that nothing depends on what else is installed, except in the
one test of the entry point. What is asserted is what the user reads.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TESTING_MD = Path(__file__).parents[2] / "docs" / "testing.md"
SECONDS_MAX = 100  # for a run of pytest
SAID = re.compile(
    r"The seed was (\d+). To repeat it: (TRIO_URING_SEED=\d+ python -m pytest \S+)$", re.M
)
INI = "[pytest]\ntrio_mode = true\nfilterwarnings = error\n"
PRELUDE = """\
import os
import socket

import pytest
import trio
import trio_uring

KEPT = []


def unix_pair():
    left, right = socket.socketpair()
    return trio_uring.SocketStream(left), right


def kept_stream():
    KEPT.extend(unix_pair())
    return KEPT[-2]

"""


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest had to say."""

    text: str
    status: int

    @property
    def counts(self) -> dict[str, int]:
        return {
            word.rstrip("s"): int(count)
            for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", self.last)
        }

    @property
    def last(self) -> str:
        return self.text.strip().splitlines()[-1]

    def of(self, test: str) -> str:
        """What is said about one test that failed."""
        match = re.search(
            rf"^_+ (?:ERROR at \w+ of )?{re.escape(test)} _+$(.*?)(?=^[_=]{{3,}} |\Z)",
            self.text,
            re.M | re.S,
        )
        assert match, self.text
        return match[1]


if TYPE_CHECKING:
    Pytest = Callable[..., Outcome]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    def run(
        source: str = "",
        *arguments: str,
        ini: str = INI,
        plugins: tuple[str, ...] = ("pytest_trio.plugin", "_trio_uring_pytestplugin"),
        python: tuple[str, ...] = (),
        **variables: str,
    ) -> Outcome:
        (tmp_path / "pytest.ini").write_text(ini)
        if source:
            (tmp_path / "test_it.py").write_text(PRELUDE + dedent(source))
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST", "TRIO_URING"))
        }
        if plugins:
            environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        loading = [part for plugin in plugins for part in ("-p", plugin)]
        command = [
            sys.executable,
            *python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *loading,
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        return Outcome(done.stdout + done.stderr, done.returncode)

    return run


def passed(outcome: Outcome, count: int) -> None:
    assert (outcome.counts, outcome.status) == ({"passed": count}, 0), outcome.text


# -- uring_driver_idle


def test_clean_tests_pass(run_pytest: Pytest) -> None:
    source = """
        async def test_cancelled(uring_driver_idle):
            stream, peer = unix_pair()
            with peer:
                with trio.move_on_after(0.01):
                    await stream.receive_some()
                await uring_driver_idle.check()
                await stream.aclose()

        async def test_destroyed(uring_driver_idle):
            stream, peer = unix_pair()
            with peer:
                receiving = stream.receive_some()
                receiving.send(None)
                while not trio_uring.current_statistics().in_flight:
                    await trio.lowlevel.checkpoint()
                receiving.close()
                assert trio_uring.current_operations()
                await uring_driver_idle.check()
                await stream.aclose()

        async def test_of_others(uring_driver_idle):
            before = sorted(os.listdir("/proc/self/fd"))
            await uring_driver_idle.check()
            assert sorted(os.listdir("/proc/self/fd")) == before, "a ring was opened"

        @pytest.fixture
        def opened_by_a_fixture():
            with socket.socket() as sock, open("kept", "w") as file:
                yield file, sock

        async def test_sync_fixture_after(uring_driver_idle, opened_by_a_fixture):
            os.unlink("kept")

        async def test_sync_fixture_before(opened_by_a_fixture, uring_driver_idle, autojump_clock):
            await trio.sleep(1000)

        @pytest.mark.skip
        async def test_skipped(uring_driver_idle):
            pass

        async def test_skips(uring_driver_idle):
            kept_stream()
            pytest.skip("now")
    """
    outcome = run_pytest(source)
    assert (outcome.counts, outcome.status) == ({"passed": 5, "skipped": 2}, 0), outcome.text


def test_fixtures_in_any_order(run_pytest: Pytest) -> None:
    """Fixtures that are torn down beside, before and after each other, slowly, and hold streams
    until then."""
    source = """
        @pytest.fixture
        async def slow(nursery):
            stream, peer = unix_pair()
            nursery.start_soon(stream.receive_some)
            yield stream
            for _ in range(5):
                await trio.sleep(0.01)
            peer.close()  # which ends the receive
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()

        @pytest.fixture
        async def dependent(uring_driver_idle, slow):
            stream, peer = unix_pair()
            yield stream
            await stream.aclose()
            peer.close()

        async def test_beside(slow, echo_server, uring_driver_idle):
            pass

        async def test_dependent(uring_driver_idle, nursery, dependent, echo_server):
            nursery.start_soon(dependent.receive_some)
            await trio.testing.wait_all_tasks_blocked()

        async def test_dependent_without(dependent):
            pass
    """
    passed(run_pytest(source), 3)


LEAKS = """
    async def test_operation(uring_driver_idle):
        trio.lowlevel.spawn_system_task(kept_stream().receive_some, name="the forgotten one")

    async def test_pinned(uring_driver_idle):
        receive = kept_stream().receive_into
        trio.lowlevel.spawn_system_task(receive, bytearray(100), name="the forgotten one")

    async def test_descriptors(uring_driver_idle):
        KEPT.append(os.pipe())
        KEPT.append(socket.create_server(("127.0.0.1", 0)))

    async def test_stream(echo_server, uring_driver_idle):
        KEPT.append(await trio_uring.open_tcp_stream(*echo_server))

    async def test_same_number(opened, uring_driver_idle):
        opened.close()
        KEPT.append(os.pipe())

    @pytest.fixture
    def opened():
        with socket.socket() as sock:
            yield sock

    async def test_middle(uring_driver_idle, nursery):
        nursery.start_soon(kept_stream().receive_some)
        await uring_driver_idle.check()

    async def test_own_error_first(uring_driver_idle):
        trio.lowlevel.spawn_system_task(kept_stream().receive_some)
        KEPT.append(os.pipe())
        raise ValueError("mine")

    @pytest.mark.xfail(raises=pytest.fail.Exception, strict=True)
    async def test_expected(uring_driver_idle):
        KEPT.append(os.pipe())
"""


def test_what_is_left_behind_fails_the_test_and_is_named(run_pytest: Pytest) -> None:
    outcome = run_pytest(LEAKS)
    assert outcome.counts == {"failed": 7}, outcome.text
    assert "1 xfailed" in outcome.last

    left = (
        r"left behind:\n  operation {} on descriptor \d+ \(socket:\[\d+\] AF_UNIX.*\), "
        r"submitted, \S+ s old, of task 'the "
    )
    operation = outcome.of("test_operation")
    assert re.search(left.format("RECV"), operation), operation
    assert "pinned" not in operation
    assert len(re.findall(r"^  descriptor \d+: socket:\[\d+\] AF_UNIX", operation, re.M)) == 2
    pinned = outcome.of("test_pinned")
    assert re.search(
        left.format("RECV") + "forgotten one', with the caller's buffers pinned", pinned
    ), pinned

    descriptors = outcome.of("test_descriptors")
    assert len(re.findall(r"^  descriptor \d+: pipe:\[\d+\]$", descriptors, re.M)) == 2
    assert re.search(
        r"^  descriptor \d+: socket:\[\d+\] AF_INET \('127.0.0.1', \d+\)$", descriptors, re.M
    ), descriptors
    address = r"\('127\.0\.0\.1', \d+\)"
    assert re.search(
        rf"^  descriptor \d+: socket:\[\d+\] AF_INET {address} -> {address}$",
        outcome.of("test_stream"),
        re.M,
    )
    assert len(re.findall(r"^  descriptor", outcome.of("test_stream"), re.M)) == 1
    assert len(re.findall(r"^  descriptor \d+: pipe", outcome.of("test_same_number"), re.M)) == 2

    middle = outcome.of("test_middle")
    assert re.search(
        r"AssertionError: trio_uring is not idle:\n.*operation RECV on descriptor", middle
    ), middle
    assert "await uring_driver_idle.check()" in middle, "the line of the test is missing"
    assert "mine" in outcome.of("test_own_error_first")
    assert "left behind" not in outcome.of("test_own_error_first")
    assert "pytestplugin.py" not in operation + pinned + descriptors, (
        "the plugin's own lines are of no use to the reader"
    )


def test_what_runs_the_test_stays_what_it_was(run_pytest: Pytest) -> None:
    """A `run` of the user's own, clocks and instruments are passed on; without trio_mode the marker
    alone is enough."""
    source = """
        RUNS = []

        def own_run(*args, **kwargs):
            RUNS.append(args)
            return trio.run(*args, **kwargs)

        @pytest.mark.trio(run=own_run)
        async def test_it(uring_driver_idle, autojump_clock):
            assert len(RUNS) == 1
            await trio.sleep(1000)
            assert trio.current_time() >= 1000

        @pytest.mark.trio
        async def test_marked(uring_driver_idle, echo_server):
            assert len(RUNS) == 1
            await uring_driver_idle.check()
    """
    passed(run_pytest(source, ini="[pytest]\nfilterwarnings = error\n"), 2)


# -- simulated_network

SEEDED = """
    def test_sync(simulated_network):
        print("sync", simulated_network.seed)
        assert {condition}

    async def test_async(simulated_network, autojump_clock, nursery):
        async def note(number):
            await trio.sleep(1)
            order.append(number)

        order = []
        for number in range(50):
            nursery.start_soon(note, number)
        await trio.sleep(2)
        listener = await simulated_network.bind(("a", 1))
        async with listener, await simulated_network.dial(("a", 1)) as client:
            async with await listener.accept() as server:
                await client.send_all(bytes(10000))
                while sum(order[50:]) < 10000:
                    order.append(len(await server.receive_some(1000)))
        print("order", order)
        assert {condition}
"""


def failing(run_pytest: Pytest, **variables: str) -> tuple[int, str, str]:
    """The seed of the sync test, that of the async one, and what that did."""
    outcome = run_pytest(SEEDED.format(condition=False), **variables)
    assert outcome.counts == {"failed": 2}, outcome.text
    seeds = []
    for test in ("test_sync", "test_async"):
        said = SAID.search(outcome.of(test))
        assert said, outcome.text
        assert said[2] == f"TRIO_URING_SEED={said[1]} python -m pytest test_it.py::{test}"
        seeds.append(int(said[1]))
    assert f"sync {seeds[0]}" in outcome.text
    return *seeds, re.search("^order .*$", outcome.text, re.M)[0]


def test_the_seed_is_of_the_test_and_repeats_it(run_pytest: Pytest) -> None:
    sync, own, order = failing(run_pytest)
    assert sync != own
    assert failing(run_pytest) == (sync, own, order)
    assert failing(run_pytest, TRIO_URING_SEED=str(own)) == (own, own, order)


@pytest.mark.long
def test_the_seed_of_the_environment(run_pytest: Pytest) -> None:
    first = failing(run_pytest, TRIO_URING_SEED="17")
    assert first[:2] == (17, 17)
    assert failing(run_pytest, TRIO_URING_SEED="18")[2] != first[2]
    sync, own, order = failing(run_pytest, TRIO_URING_SEED="random")
    assert sync != own
    assert failing(run_pytest, TRIO_URING_SEED=str(own)) == (own, own, order)


def test_a_seed_that_is_none(run_pytest: Pytest) -> None:
    outcome = run_pytest(SEEDED.format(condition=True), TRIO_URING_SEED="seventeen")
    assert outcome.counts == {"error": 2}
    # Once for each test, and where $CI is set in pytest's summary as well.
    assert outcome.text.count(
        "TRIO_URING_SEED must be an integer or 'random', not 'seventeen'\n"
    ) in (2, 4)


def test_the_seed_is_shown_on_failure_only(run_pytest: Pytest) -> None:
    outcome = run_pytest(SEEDED.format(condition=True), "-rA")
    passed(outcome, 2)
    assert "The seed was" not in outcome.text
    outcome = run_pytest(
        SEEDED.format(condition="pytest.fail('so', pytrace=False)"), "--show-capture=no", "-rA"
    )
    assert outcome.text.count("The seed was") == 2


def test_the_scheduler_is_as_before(run_pytest: Pytest) -> None:
    source = """
        from trio._core import _run

        def test_before():
            _run._ALLOW_DETERMINISTIC_SCHEDULING = "before"
            _run._r.seed(3)
            KEPT.append(_run._r.getstate())

        async def test_between(simulated_network):
            assert _run._ALLOW_DETERMINISTIC_SCHEDULING is True

        def test_after():
            assert _run._ALLOW_DETERMINISTIC_SCHEDULING == "before"
            assert _run._r.getstate() == KEPT[0]
    """
    passed(run_pytest(source), 3)


# -- echo_server


def test_echo_server(run_pytest: Pytest) -> None:
    source = """
        async def test_echo(echo_server, uring_driver_idle):
            for open_tcp_stream in (trio_uring.open_tcp_stream, trio.open_tcp_stream):
                stream = await open_tcp_stream(*echo_server)
                async with stream, trio.open_nursery() as nursery:
                    data = os.urandom(10**6)
                    nursery.start_soon(stream.send_all, data)
                    received = b""
                    while len(received) < len(data):
                        received += await stream.receive_some()
                    assert received == data
                    await stream.send_eof()
                    assert await stream.receive_some() == b""
            await uring_driver_idle.check()
            assert [op.opcode for op in trio_uring.current_operations()] == ["POLL_ADD"]

        async def test_still_open(echo_server, uring_driver_idle):
            for _ in range(3):
                KEPT.append(await trio_uring.open_tcp_stream(*echo_server))
                await KEPT[-1].send_all(b"x")
                await KEPT[-1].receive_exactly(1)

        @pytest.mark.usefixtures("uring_driver_idle")
        async def test_closed_by_the_server():
            for stream in KEPT:
                assert os.read(stream.socket.fileno(), 1) == b""
                await stream.aclose()

        async def test_reset(echo_server, uring_driver_idle):
            config = trio_uring.NetworkConfig(so_linger=0)
            for _ in range(3):
                stream = await trio_uring.UringNetwork(config).dial(echo_server)
                await stream.send_all(b"x")
                await stream.receive_exactly(1)
                await stream.aclose()
            async with await trio_uring.UringNetwork().dial(echo_server) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
    """
    outcome = run_pytest(source)
    assert outcome.counts == {"passed": 3, "failed": 1}, outcome.text
    assert outcome.of("test_still_open").count("  descriptor ") == 3, (
        "other descriptors than the three of the test"
    )


def test_no_ring(run_pytest: Pytest) -> None:
    """io_uring cannot be used: what needs it says so, and nothing else minds."""
    source = """
        @pytest.fixture
        def refused(monkeypatch):
            def refuse(*args):
                raise trio_uring.RingUnavailableError("not on this machine")
            monkeypatch.setattr("trio_uring._driver.run.open_ring", refuse)

        async def test_echo(refused, echo_server):
            pass

        async def test_others(refused, simulated_network, uring_driver_idle, autojump_clock):
            async with await simulated_network.bind(("a", 0)):
                await uring_driver_idle.check()
    """
    outcome = run_pytest(source)
    assert outcome.counts == {"passed": 1, "failed": 1}, outcome.text
    assert "RingUnavailableError: not on this machine" in outcome.of("test_echo")


# -- the plugin among others

USES = """
    @pytest.mark.parametrize("fixture", ["uring_driver_idle", "echo_server"])
    def test_sync(request, fixture):
        request.getfixturevalue(fixture)

    async def test_idle(uring_driver_idle):
        pass

    async def test_echo(echo_server):
        pass

    def test_network(simulated_network):
        pass

    def test_nothing():
        pass
"""


def test_without_pytest_trio(run_pytest: Pytest, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pytest_trio'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ini = "[pytest]\nfilterwarnings = error\n"
    outcome = run_pytest(USES, ini=ini, plugins=("_trio_uring_pytestplugin",), PYTHONPATH=path)
    assert outcome.counts == {"passed": 2, "failed": 2, "error": 2}, outcome.text
    for test in (
        "test_sync[uring_driver_idle]",
        "test_sync[echo_server]",
        "test_idle",
        "test_echo",
    ):
        assert "need pytest-trio: pip install pytest-trio\n" in outcome.of(test)


def test_pytest_trio_is_there_and_the_test_is_none_of_its(run_pytest: Pytest) -> None:
    outcome = run_pytest(USES, ini="[pytest]\nfilterwarnings = error\n")
    assert outcome.counts == {"passed": 2, "failed": 2, "error": 2}, outcome.text
    for test in (
        "test_sync[uring_driver_idle]",
        "test_sync[echo_server]",
        "test_idle",
        "test_echo",
    ):
        assert "mark the test with pytest.mark.trio, or set trio_mode" in outcome.of(test)


def test_hypothesis(run_pytest: Pytest) -> None:
    source = """
        from hypothesis import given, strategies as st

        @given(st.integers())
        async def test_it(uring_driver_idle, number):
            pass
    """
    outcome = run_pytest(source)
    assert "uring_driver_idle cannot check a test of Hypothesis" in outcome.of("test_it")


def test_listed(run_pytest: Pytest) -> None:
    outcome = run_pytest("", "--fixtures", "-v")
    for fixture in ("uring_driver_idle", "simulated_network", "echo_server"):
        assert re.search(
            rf"^{fixture} -- .*_trio_uring_pytestplugin\.py:\d+\n    \S", outcome.text, re.M
        ), outcome.text
    assert "_trio_test" not in run_pytest("", "--fixtures").text


def test_being_loaded_is_cheap_and_silent(run_pytest: Pytest) -> None:
    source = """
        def test_loaded(request):
            assert request.config.pluginmanager.hasplugin("_trio_uring_pytestplugin")
            links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
            assert not [link for link in links if "uring" in link or "event" in link]
    """
    ini = "[pytest]\nfilterwarnings = error\n"
    passed(
        run_pytest(
            source,
            ini=ini,
            plugins=("_trio_uring_pytestplugin",),
            python=("-W", "error", "-X", "dev"),
        ),
        1,
    )


def test_module_imports_nothing_more() -> None:
    """The cost of the module itself, in modules: but contextvars, what pytest has loaded anyway."""
    code = """
        import sys, pytest
        before = set(sys.modules)
        import _trio_uring_pytestplugin
        print(sorted(set(sys.modules) - before))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['_contextvars', '_trio_uring_pytestplugin', 'contextvars']"


def test_a_run_that_does_not_use_it_imports_nothing_of_the_package() -> None:
    """Also where the package itself could not be imported."""
    code = """
        import sys, pytest
        sys.modules["trio_uring"] = None
        status = pytest.main(["-q", "-p", "_trio_uring_pytestplugin", "--collect-only", "-p",
                              "no:cacheprovider", sys.argv[1]])
        assert status == pytest.ExitCode.NO_TESTS_COLLECTED, status
        assert not [name for name in sys.modules if name.startswith(("trio_uring.", "trio."))]
    """
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", dedent(code), empty],
            cwd=empty,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_name_in_the_package(run_pytest: Pytest) -> None:
    outcome = run_pytest(
        "def test_it(simulated_network): assert simulated_network",
        plugins=("pytest_trio.plugin", "trio_uring.pytest_plugin"),
    )
    passed(outcome, 1)


def test_both_names_at_once(run_pytest: Pytest, tmp_path: Path) -> None:
    """The entry point's, and what a conftest.py asks for."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["trio_uring.pytest_plugin"]')
    outcome = run_pytest(
        "def test_it(simulated_network): assert not simulated_network\n"
        "async def test_more(echo_server, uring_driver_idle): assert echo_server\n",
        plugins=(),
    )
    assert outcome.text.count("The seed was") == 1
    assert "1 failed, 1 passed" in outcome.text


def test_the_entry_point(run_pytest: Pytest) -> None:
    assert [point.value for point in entry_points(group="pytest11", name="trio_uring")] == [
        "_trio_uring_pytestplugin"
    ]
    passed(
        run_pytest(
            "async def test_it(uring_driver_idle, echo_server, simulated_network): pass", plugins=()
        ),
        1,
    )
    outcome = run_pytest("def test_it(simulated_network): pass", "-p", "no:trio_uring", plugins=())
    assert "fixture 'simulated_network' not found" in outcome.text


# -- the documentation


ENABLED = """\
import inspect

import pytest
import trio_uring


def pytest_collection_modifyitems(items):
    for item in items:
        # An enabled run has its ring from the beginning: use_ring would come too late.
        if inspect.iscoroutinefunction(item.obj) and not hasattr(item.module, "use_ring"):
            item.add_marker(pytest.mark.trio(run=trio_uring.run), append=False)
"""


@pytest.mark.parametrize("enabled", [False, True])
def test_every_example_of_the_documentation_runs(
    run_pytest: Pytest, tmp_path: Path, enabled: bool
) -> None:
    if enabled:
        (tmp_path / "conftest.py").write_text(ENABLED)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", TESTING_MD.read_text(), re.M | re.S)
    ini, *others = [text for language, text in blocks if language == "ini"]
    assert not others
    programs = [text for language, text in blocks if language == "python"]
    assert len(programs) >= 5
    assert {language for language, _ in blocks} == {"ini", "python", "text"}
    for number, text in enumerate(programs):
        assert "def test_" in text
        (tmp_path / f"test_block_{number}.py").write_text(text)
    passed(run_pytest(ini=ini), sum(text.count("def test_") for text in programs))
