"""Whole programs, unmodified, on the ring because `python -m trio_uring run` started them:
hypercorn and anycorn with workers, quart-trio, anyio.run, pytest-trio, tractor, multiprocessing.

Rules of this file: each program is started by its own command line. A package that is not of the
extra `dev` is skipped where it is not installed, with a reason; .ci/run installs what it can.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.launched import (
    APP,
    RUN,
    SECONDS_MAX,
    Blocker,
    Server,
    environment,
    serving,
    under_load,
)
from support.long_cases import long

import trio_uring
from trio_uring._cli.process import UnknownProcessError, describe_process

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = 16


def hypercorn(workers: int, *arguments: str, app: str = APP) -> list[str]:
    options = ("-k", "trio", "-w", str(workers), "-b", "127.0.0.1:0")
    return [*RUN, "-m", "hypercorn", *options, *arguments, app]


def anycorn(workers: int, *arguments: str, app: str = APP) -> list[str]:
    pytest.importorskip("anycorn")
    options = ("-w", str(workers), "-b", "127.0.0.1:0")
    return [*RUN, "-m", "anycorn", "-k", "trio", *options, *arguments, app]


SERVERS = {"hypercorn": hypercorn, "anycorn": anycorn}
served_by = pytest.mark.parametrize("by", list(SERVERS))


def assert_ours(seen: dict[str, Any]) -> None:
    assert (seen["socket"], seen["backend"]) == (
        "UringSocket",
        trio_uring.backend_info().backend,
    )
    assert seen["stream"] == "trio_uring._streams.streams"
    assert seen["operations"] > 0


# -- servers with workers


@served_by
@pytest.mark.parametrize("workers", [long(0), long(1), 3])
def test_all_workers_answer_under_load(by: str, workers: int) -> None:
    def enough(answers: list[dict[str, Any]]) -> bool:
        return len(answers) >= 200 and len({each["pid"] for each in answers}) >= max(workers, 1)

    with serving(SERVERS[by](workers)) as server:
        answers = under_load(server, CLIENTS, enough)
        for each in answers:
            assert_ours(each)
        workers_seen = {each["pid"] for each in answers}
        assert (server.process.pid in workers_seen) == (workers == 0)
        for pid in workers_seen:
            rings = "1 ring is open" in "\n".join(describe_process(pid))
            assert rings == (trio_uring.backend_info().backend == "uring")


@pytest.mark.long
@served_by
def test_a_blocked_worker_delays_nobody(by: str, tmp_path: Path) -> None:
    with (
        Blocker(tmp_path / "blocker") as blocker,
        serving(SERVERS[by](3), **blocker.variables) as server,
    ):
        under_load(server, CLIENTS, lambda answers: len({each["pid"] for each in answers}) == 3)
        with contextlib.closing(server.connect()) as blocking:
            blocking.request("GET", "/block")
            response = blocking.getresponse()
            assert response.read(5) == b"begun"
            with blocker.blocked():
                answers = [server.seen() for _ in range(100)]
                assert len({each["pid"] for each in answers}) <= 2
            assert response.read() == b" ended"


@pytest.mark.long
@served_by
def test_it_stops_when_all_requests_are_answered(by: str) -> None:
    """With one worker: both servers, on trio's own runs too, end the others when one has ended."""
    patient = ("--graceful-timeout", str(SECONDS_MAX))
    with serving(SERVERS[by](1, *patient)) as server:
        with contextlib.closing(server.connect()) as slow:
            slow.request("GET", "/slow")
            response = slow.getresponse()
            assert response.read(5) == b"begun"
            status: list[int] = []
            stopping = threading.Thread(target=lambda: status.append(server.stop()))
            stopping.start()
            assert response.read() == b" ended"
        stopping.join()
        assert status == [0]
        with pytest.raises(ConnectionError):
            server.get()


@served_by
def test_it_stops_with_all_its_workers(by: str) -> None:
    with serving(SERVERS[by](3)) as server:
        answers = under_load(
            server, CLIENTS, lambda answers: len({each["pid"] for each in answers}) == 3
        )
        assert server.stop() == 0, server.said
        for pid in {each["pid"] for each in answers}:
            with pytest.raises(UnknownProcessError):
                describe_process(pid)


@served_by
def test_without_workers_it_stops_by_an_interrupt(by: str) -> None:
    with serving(SERVERS[by](0)) as server:
        assert_ours(server.seen())
        server.until_at_rest()
        assert server.stop(signal.SIGINT) == 0, server.said


@pytest.mark.long
def test_reloading_by_a_signal() -> None:
    """hypercorn's own: SIGHUP."""
    with serving(hypercorn(2)) as server:
        answers = under_load(
            server, CLIENTS, lambda answers: len({each["pid"] for each in answers}) == 2
        )
        old = {each["pid"] for each in answers}
        server.process.send_signal(signal.SIGHUP)
        until_only_new_ones_answer(server, old)
        assert server.stop() == 0


@pytest.mark.long
def test_reloading_when_a_file_has_changed(tmp_path: Path) -> None:
    (tmp_path / "reloaded.py").write_text("from support.launched import app as app\n")
    command = hypercorn(1, "--reload", app="reloaded:app")
    path = environment()["PYTHONPATH"] + f":{tmp_path}"
    with serving(command, PYTHONPATH=path) as server:
        old = {server.seen()["pid"]}
        (tmp_path / "reloaded.py").write_text("from support.launched import app as app  # new\n")
        until_only_new_ones_answer(server, old)
        assert server.stop() == 0


def until_only_new_ones_answer(server: Server, old: set[int]) -> None:
    end = time.monotonic() + SECONDS_MAX
    while True:
        with contextlib.suppress(ConnectionError):  # of a worker that is just leaving
            seen = server.seen()
            if seen["pid"] not in old:
                break
        assert time.monotonic() < end, "the old workers still answer"
        time.sleep(0.05)
    assert_ours(seen)


def test_off_is_the_variable_unset() -> None:
    command = hypercorn(1)[len(RUN) :]
    with serving([sys.executable, *command]) as server:
        assert server.seen()["socket"] == "_SocketType"
    with serving([*RUN, "--backend", "off", *command]) as server:
        seen = server.seen()
        assert (seen["socket"], seen["stream"]) == ("_SocketType", "trio")


# -- programs


def output(command: list[str], folder: Path, seconds_max: float = SECONDS_MAX) -> str:
    done = subprocess.run(
        [*RUN, *command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_anyio_run(tmp_path: Path) -> None:
    pytest.importorskip("anyio")
    (tmp_path / "program.py").write_text(
        "import json, anyio\n"
        "from anyio.from_thread import start_blocking_portal\n"
        "from support.launched import seen\n"
        "print(json.dumps(anyio.run(seen, backend='trio')))\n"
        "with start_blocking_portal('trio') as portal:\n"
        "    print(json.dumps(portal.call(seen)))\n"
        "async def neither(): return 1\n"
        "assert anyio.run(neither, backend='asyncio') == 1\n"
    )
    lines = output(["program.py"], tmp_path).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert_ours(json.loads(line))


@pytest.mark.long
def test_quart_trio(tmp_path: Path) -> None:
    """Its own `run`, and under hypercorn."""
    pytest.importorskip("quart_trio")
    (tmp_path / "quarted.py").write_text(
        "from quart_trio import QuartTrio\n"
        "from support.launched import seen\n"
        "app = QuartTrio('launched')\n"
        "@app.get('/')\n"
        "async def index(): return await seen()\n"
        "if __name__ == '__main__': app.run(port=0)\n"
    )
    path = environment()["PYTHONPATH"] + f":{tmp_path}"
    for command in (
        hypercorn(2, app="quarted:app"),
        [*RUN, str(tmp_path / "quarted.py")],
    ):
        with serving(command, PYTHONPATH=path) as server:
            assert_ours(server.seen())


@pytest.mark.long
def test_pytest_trio(tmp_path: Path) -> None:
    pytest.importorskip("pytest_trio")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from support.launched import seen\n"
        "@pytest.fixture\n"
        "async def in_a_fixture(): return await seen()\n"
        "@pytest.mark.trio\n"
        "async def test_it(in_a_fixture):\n"
        "    assert in_a_fixture['socket'] == (await seen())['socket'] == 'UringSocket'\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    for more in ((), ("-n", "1", "-p", "xdist")):  # two processes, with all plugins that there are
        command = ["-m", "pytest", *options, *more, "test_it.py"]
        assert "1 passed" in output(command, tmp_path, 1.5 * SECONDS_MAX)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_multiprocessing(method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import multiprocessing, sys\n"
        "from support.launched import say\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context(sys.argv[1]).Process(target=say)\n"
        "    child.start()\n"
        "    child.join()\n"
        "    sys.exit(child.exitcode)\n"
    )
    assert_ours(json.loads(output(["program.py", method], tmp_path)))


def test_tractor(tmp_path: Path) -> None:
    """An actor is a process of its own, with a trio.run of its own.

    The release on the index cannot be imported with a trio that trio_uring supports; what is in
    its repository can, from Python 3.13 on.
    """
    pytest.importorskip("tractor", exc_type=ImportError)
    (tmp_path / "program.py").write_text(
        "import json, tractor, trio\n"
        "from support.launched import seen\n"
        "async def main():\n"
        "    async with tractor.open_nursery() as nursery:\n"
        "        portal = await nursery.run_in_actor(seen)\n"
        "        print(json.dumps(await portal.result()))\n"
        "    print(json.dumps(await seen()))\n"
        "if __name__ == '__main__': trio.run(main)\n"
    )
    lines = output(["program.py"], tmp_path).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert_ours(json.loads(line))
