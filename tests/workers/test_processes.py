"""serve_workers with real processes: everything that an operator does to them.

Rules of this file: what is waited for is a line of the log or the end of a process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.workers import APP, answer, pids, request, serving, supervisor, wait_for_end

from trio_uring._workers import process as _process
from trio_uring._workers.channel import Order
from trio_uring._workers.target import Target

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(sys.platform != "linux", reason="it waits for processes by pidfd"),
]

HOLDS = """
import os, pathlib, trio, trio_uring

async def main(worker):
    async def handler(stream):
        await stream.receive_some()
        await stream.send_all(b"begun\\n")
        while not pathlib.Path("go").exists():
            await trio.sleep(0.01)
        await stream.send_all(b"done\\n")
    await worker.serve(handler)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP.format(version="one"))
    return tmp_path


def write(app: Path, text: str) -> None:
    """A program of another size: the cache of bytecode goes by seconds, and by the size."""
    (app / "app.py").write_text(f"{text}#{' ' * len(text)}\n")


# -- all of them answer


def test_each_worker_answers(app: Path) -> None:
    with serving(app) as (one, port):
        for number, pid in pids(one).items():
            os.kill(pid, signal.SIGSTOP)
            [other] = {0, 1} - {number}
            assert request(port) == ["one", str(other), str(pids(one)[other])]
            os.kill(pid, signal.SIGCONT)
        assert one.end(signal.SIGTERM) == 0


def test_with_reuse_port_the_kernel_spreads_connections(app: Path) -> None:
    """By a hash: of 64 none for one of two workers has odds of 2**-63."""
    with serving(app, "--reuse-port") as (one, port):
        assert {request(port)[1] for _ in range(64)} == {"0", "1"}
        assert one.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("backend", ["readiness", "off"])
def test_the_backend_of_the_workers(backend: str, app: Path) -> None:
    write(
        app,
        "import trio_uring\n"
        "async def main(worker):\n"
        "    async def handler(stream):\n"
        "        info = trio_uring.backend_info()\n"
        "        await stream.send_all(f'{info.backend} {info.requested}\\n'.encode())\n"
        "    await worker.serve(handler)\n",
    )
    with serving(app, "--backend", backend, workers=1) as (one, port):
        assert request(port) == ["readiness", backend]
        assert one.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("closed", [(0,), (0, 1)])
def test_a_supervisor_without_standard_input(closed: tuple[int, ...], app: Path) -> None:
    """As cron jobs and scripts with `<&-` start it: no socket gets these numbers."""
    code = f"import os, sys; [os.close(fd) for fd in {closed}]; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    command += ["--bind", "127.0.0.1:0", "--failures-max", "1"]
    with supervisor([sys.executable, "-c", code, *command], app) as one:
        port = int(one.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[1])
        one.ready()
        assert request(port)[:2] == ["one", "0"]
        assert one.end(signal.SIGTERM) == 0


# -- one of them ends


def test_a_worker_that_is_killed_is_started_again_and_the_port_answers(app: Path) -> None:
    with serving(app) as (one, port):
        before = pids(one)
        os.kill(before[1], signal.SIGKILL)
        again = threading.Event()
        waiter = threading.Thread(target=lambda: (one.ready(), again.set()))
        waiter.start()
        while not again.is_set():
            assert request(port)[0] == "one"
        waiter.join()
        after = pids(one)
        assert after[0] == before[0]
        assert after[1] != before[1]
        assert any("has ended by itself" in line and "SIGKILL" in line for line in one.lines)
        assert one.end(signal.SIGTERM) == 0


def test_a_program_that_fails_again_and_again_is_given_up(app: Path) -> None:
    write(app, "async def main(worker):\n    raise SystemExit(worker.number + 40)\n")
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    with supervisor([*command, "--failures-max", "4"], app) as one:
        for delay in ("0.1", "0.2", "0.4"):
            one.wait_for(
                rf"ended by itself after .* s: exit status 40; the next one is started in {delay} s"
            )
        assert one.end() == 1
    assert one.lines[-1].startswith("python -m trio_uring serve: worker 0 (pid ")
    assert one.lines[-1].endswith("exit status 40; that was failure 4 in a row")


def test_a_worker_that_returns_has_ended_by_itself(app: Path) -> None:
    write(app, "async def main(worker):\n    worker.ready()\n")
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    with supervisor([*command, "--failures-max", "2"], app) as one:
        one.ready()
        one.wait_for("exit status 0; the next one")
        assert one.end() == 1


def test_a_worker_that_is_never_ready(app: Path) -> None:
    write(app, "import trio\nasync def main(worker):\n    await trio.sleep_forever()\n")
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    with supervisor([*command, "--failures-max", "1", "--ready-timeout", "1"], app) as one:
        assert one.end() == 1
    assert "it did not call worker.ready() within 1 s" in one.lines[-1]


def test_workers_end_when_their_supervisor_is_killed(app: Path) -> None:
    with serving(app) as (one, port):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"x")
            answer(sock)
            one.process.kill()
            for pid in pids(one).values():
                wait_for_end(pid)


@pytest.mark.long
def test_a_worker_that_only_imports_ends_with_its_supervisor(app: Path) -> None:
    """Nobody asks it to, and its trio run has not begun. 5 seconds: it may have been about to."""
    write(
        app,
        "import os, pathlib, time\n"
        "pathlib.Path('new').write_text(str(os.getpid()))\n"
        "pathlib.Path('new').rename('pid')\n"
        "time.sleep(1000)\n",
    )
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    with supervisor([*command, "--grace", "0"], app) as one:
        while not (app / "pid").exists():
            assert one.process.poll() is None
        one.process.kill()
        wait_for_end(int((app / "pid").read_text()))


# -- rolling restarts


def patient(version: str) -> str:
    """A program that does not end a connection whose client gets no processor between its connect
    and its request."""
    serves = "    await worker.serve(handler)"
    assert serves in APP
    return APP.format(version=version).replace(serves, f"    worker.shutdown.quiet = 60\n{serves}")


@pytest.mark.parametrize("arguments", [[], ["--reuse-port"]], ids=["shared", "reuse_port"])
def test_a_rolling_restart_under_load_loses_nothing(arguments: list[str], app: Path) -> None:
    seen: list[list[list[str]]] = [[] for _ in range(4)]
    failed: list[Exception] = []
    enough = threading.Event()

    def load(answers: list[list[str]], port: int) -> None:
        try:
            while not enough.is_set():
                answers.append(request(port))
        except Exception as exc:
            failed.append(exc)

    (app / "app.py").write_text(patient("one"))
    with serving(app, *arguments) as (one, port):
        before = pids(one)
        clients = [threading.Thread(target=load, args=(each, port)) for each in seen]
        for client in clients:
            client.start()
        write(app, patient("two"))
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("all workers were replaced")
        counts = [len(each) for each in seen]
        enough.set()
        for client in clients:
            client.join()
        after = pids(one)
        assert not failed, failed
        assert min(counts) > 0
        assert set(before.values()).isdisjoint(after.values())
        versions = [[version for version, _, _ in each] for each in seen]
        assert {version for each in versions for version in each} == {"one", "two"}
        assert request(port)[0] == "two"
        for pid in before.values():
            wait_for_end(pid)
        assert one.end(signal.SIGTERM) == 0


def test_a_program_that_is_broken_replaces_nothing(app: Path) -> None:
    with serving(app) as (one, port):
        before = pids(one)
        write(app, "1 / 0\n")
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("does not replace the old one: app cannot be imported: ZeroDivisionError")
        one.wait_for("the rolling restart ends here")
        assert any("app.py" in line and "line 1" in line for line in one.lines)
        assert request(port)[0] == "one"
        write(app, APP.format(version="three"))
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("all workers were replaced")
        assert request(port)[0] == "three"
        assert set(before.values()).isdisjoint(pids(one).values())
        assert one.end(signal.SIGTERM) == 0


def test_a_crash_loop_ends_with_a_better_program(app: Path) -> None:
    """A rolling restart does not wait for the next attempt."""
    with serving(app, workers=1) as (one, port):
        write(app, "1 / 0\n")
        os.kill(pids(one)[0], signal.SIGKILL)
        one.wait_for(r"cannot be imported: .*; the next one is started in 0\.4 s")
        write(app, APP.format(version="two"))
        one.process.send_signal(signal.SIGHUP)
        one.ready()
        assert request(port)[0] == "two"
        assert one.end(signal.SIGTERM) == 0


# -- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_finished(number: signal.Signals, app: Path) -> None:
    write(app, HOLDS)
    with serving(app) as (one, port):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(b"x")
            assert answer(sock) == ["begun"]
            # As a terminal or a service manager does it: to all processes, and more than once to
            # the workers.
            os.killpg(one.process.pid, number)
            one.wait_for("the workers end")
            for pid in pids(one).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            (app / "go").touch()
            assert answer(sock) == ["done"]
        assert one.end() == 0
        with pytest.raises(ConnectionRefusedError):
            request(port)


def test_a_terminal_does_not_interrupt_a_worker_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while it imports what it is made of: here a package of the same name."""
    (tmp_path / "trio_uring" / "_workers").mkdir(parents=True)
    (tmp_path / "trio_uring" / "__init__.py").write_text("print('imports', flush=True); input()")
    (tmp_path / "trio_uring" / "_workers" / "child.py").write_text("start = print")
    monkeypatch.setattr(_process, "_PACKAGES", str(tmp_path))
    order = Order(0, 1, Target("main", "app"), [], [], [], None, 0.0, False)
    with subprocess.Popen(
        _process._command(order, 7), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imports\n"
        for number in (signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert process.communicate("\n", 60)[0] == "7\n"
        assert process.returncode == 0


def test_what_does_not_finish_is_cancelled_after_the_grace(app: Path) -> None:
    write(app, HOLDS)
    with serving(app, "--grace", "0.1") as (one, port):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(b"x")
            assert answer(sock) == ["begun"]
            assert one.end(signal.SIGTERM) == 0
            assert sock.recv(10) == b""


def test_a_second_signal_cuts_short(app: Path) -> None:
    write(app, HOLDS)
    with serving(app, "--grace", "1000") as (one, port):
        with socket.create_connection(("127.0.0.1", port), 60) as sock:
            sock.sendall(b"x")
            assert answer(sock) == ["begun"]
            one.process.send_signal(signal.SIGINT)
            one.wait_for("the workers end")
            one.process.send_signal(signal.SIGINT)
            one.wait_for("are cut short")
            assert one.end() == 0


STUCK = """
import time
async def main(worker):
    async def handler(stream):
        await stream.send_all(b'stuck\\n')
        time.sleep(1000)
    await worker.serve(handler)
"""


@pytest.mark.long
def test_a_stuck_worker_is_killed_to_be_replaced(app: Path) -> None:
    """That is not a failure of the end, which comes later."""
    write(app, STUCK)
    with serving(app, "--grace", "0", workers=1) as (one, port):
        assert request(port) == ["stuck"]
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("had to be killed")
        one.wait_for("all workers were replaced")
        assert one.end(signal.SIGTERM) == 0


@pytest.mark.long
def test_a_worker_that_is_stuck_is_killed(app: Path) -> None:
    write(app, STUCK)
    with serving(app, "--grace", "0", workers=1) as (one, port):
        assert request(port) == ["stuck"]
        assert one.end(signal.SIGTERM) == 1
    assert "had to be killed, since they did not end in time: worker 0" in one.lines[-1]


def test_it_may_be_ended_while_workers_start(app: Path) -> None:
    write(app, "import time\nprint('loading', flush=True)\ntime.sleep(1000)\n")
    command = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--bind", "127.0.0.1:0"]
    with supervisor(command, app) as one:
        one.wait_for("listening on")
        assert one.end(signal.SIGTERM) == 0
