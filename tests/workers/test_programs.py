"""Programs that call serve_workers by themselves, and `serve` with what it cannot do.

Rules of this file: each program is a process of its own.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
from support.command import command
from support.workers import APP, pids, request, supervisor

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(sys.platform == "win32", reason="no worker processes"),
]

SCRIPT = """
import logging, os, sys
import trio_uring
import beside

async def main(worker):
    async def handler(stream):
        words = [__name__, sys.argv[1], beside.__name__, str(worker.workers), worker.__module__]
        await stream.send_all(" ".join(words).encode() + b"\\n")
    await worker.serve(handler)

def start():
    logging.basicConfig(level=logging.INFO)
    trio_uring.serve_workers(main, 2, bind="127.0.0.1:0")
    print("ended", file=sys.stderr)
"""
GUARDED = f"{SCRIPT}\nif __name__ == '__main__':\n    start()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "beside.py").touch()
    (tmp_path / "package" / "module.py").write_text(GUARDED)
    (tmp_path / "script").write_text(GUARDED)
    return tmp_path


@pytest.mark.parametrize(
    ("start", "name"),
    [(["script"], "__mp_main__"), (["-m", "package.module"], "package.module")],
    ids=["script", "module"],
)
@pytest.mark.parametrize("install", ["", "1"], ids=["", "installed"])
def test_a_program_with_a_function(start: list[str], name: str, install: str, folder: Path) -> None:
    """Its workers have its arguments and its search path. Where every run is enabled, too."""
    whole = [sys.executable, "-X", "dev", *start, "--flag"]
    with supervisor(whole, folder, TRIO_URING_INSTALL=install) as one:
        port = int(one.wait_for(r"listening on .*:(\d+)")[1])
        one.wait_for("all workers are ready: 2")
        assert request(port) == [name, "--flag", "beside", "2", "trio_uring._workers.worker"]
        rings = [os.readlink(each) for each in Path(f"/proc/{one.process.pid}/fd").iterdir()]
        assert not [each for each in rings if "io_uring" in each]
        for pid in pids(one).values():
            assert b"-X\0dev\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert one.end(signal.SIGTERM) == 0
        assert one.lines[-1] == "ended"


def test_a_search_path_with_more_than_strings(folder: Path) -> None:
    """Imports pass over what is none."""
    add = "import sys, pathlib; sys.path.insert(1, pathlib.Path('/nowhere'))\n"
    (folder / "script").write_text(add + GUARDED)
    with supervisor([sys.executable, "script", "--flag"], folder) as one:
        port = int(one.wait_for(r"listening on .*:(\d+)")[1])
        one.wait_for("all workers are ready: 2")
        assert request(port)[1:3] == ["--flag", "beside"]
        assert one.end(signal.SIGTERM) == 0


def test_a_worker_of_a_script_may_spawn_processes(folder: Path) -> None:
    (folder / "script").write_text(
        "import multiprocessing, os, sys\n"
        "import trio_uring\n"
        "def square(number): return number * number\n"
        "async def main(worker):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.apply(square, (3,)) == 9\n"
        "    print('squared', file=sys.stderr, flush=True)\n"
        "    worker.ready()\n"
        "    await worker.shutdown.wait()\n"
        "if __name__ == '__main__': trio_uring.serve_workers(main, 1, failures_max=1)\n"
    )
    with supervisor([sys.executable, "script"], folder) as one:
        one.wait_for("squared")
        assert one.end(signal.SIGTERM) == 0


def test_sigterm_ends_what_a_worker_has_forked(folder: Path) -> None:
    """A multiprocessing.Pool ends its processes by it, and waits for them."""
    (folder / "script").write_text(
        "import os, signal, sys, time\n"
        "import trio_uring\n"
        "async def main(worker):\n"
        "    if (child := os.fork()) == 0:\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    print('forked', os.WTERMSIG(status), file=sys.stderr, flush=True)\n"
        "    worker.ready()\n"
        "    await worker.shutdown.wait()\n"
        "if __name__ == '__main__': trio_uring.serve_workers(main, 1, failures_max=1)\n"
    )
    with supervisor([sys.executable, "script"], folder) as one:
        one.wait_for(f"forked {signal.SIGTERM.value}")
        assert one.end(signal.SIGTERM) == 0


def test_without_the_guard_no_worker_starts_workers(folder: Path) -> None:
    (folder / "script").write_text(f"{SCRIPT}\nstart()\n")
    with supervisor([sys.executable, "script", "--flag"], folder) as one:
        assert one.end() == 1
    assert 'call it under `if __name__ == "__main__":`' in one.lines[-1]
    assert one.lines[-1].startswith("trio_uring.WorkersError: ") or "WorkersError" in one.lines[-1]


def serve(*arguments: str, folder: Path) -> list[str]:
    root = str(Path(__file__).parents[2])
    done = command("serve", *arguments, cwd=folder, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense:main"], "there is no module 'nonsense'"),
        (["package:main"], "there is no 'main' in package"),
        (["package:__doc__"], "there is no '__doc__' in package"),
        (["package:__path__"], "package:__path__ is not a function"),
        (
            ["wrong:app"],
            "wrong:app does not take a Worker, as async def main(worker) does: missing",
        ),
        (["wrong:main"], "wrong:main is not an async function"),
        (["package"], "'package' is not MODULE:FUNCTION"),
        (["package.py:main"], "there is no module 'package.py'"),
        (["package:main", "--bind", "localhost"], "'localhost' is not HOST:PORT, :PORT or"),
        (["package:main", "--bind", "unix:"], "the path of a Unix socket must not be empty"),
        (["package:main", "--unix-mode", "660"], "unix_mode is for addresses unix:PATH, and the"),
        (["package:main", "--workers", "0"], "there must be at least 1 worker, not 0"),
        (["package:main", "--grace", "-1"], "timeout must be a number of seconds >= 0"),
        (["package:main", "--backend", "kqueue"], "'kqueue': a backend is one of"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], says: str, folder: Path) -> None:
    (folder / "wrong.py").write_text(
        "async def app(scope, receive, send): ...\ndef main(worker): ...\n"
    )
    [line] = serve(*arguments, folder=folder)
    assert line.startswith("python -m trio_uring serve: ")
    assert says in line


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [line] = serve("package:main", "--bind", f"127.0.0.1:{port}", folder=folder)
    assert line.endswith(f"Address already in use: 127.0.0.1:{port}")


def test_a_program_that_cannot_be_imported_shows_one_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("\n\n1 / 0\n")
    lines = serve("broken:main", "--workers", "2", folder=folder)
    assert lines[-1].endswith("broken cannot be imported: ZeroDivisionError: division by zero")
    assert sum("Traceback" in line for line in lines) == 1
    assert any("broken.py" in line and "line 3" in line for line in lines)


# -- systemd


def test_systemd_is_told(folder: Path) -> None:
    """READY=1 only when all workers are ready, and nothing of it reaches the workers."""
    (folder / "app.py").write_text(
        "import os\n"
        "async def main(worker):\n"
        "    assert 'NOTIFY_SOCKET' not in os.environ\n"
        "    while worker.number and not os.path.exists('go'):\n"
        "        await __import__('trio').sleep(0.01)\n"
        "    worker.ready()\n"
        "    await worker.shutdown.wait()\n"
    )
    start = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "2"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(60)
        with supervisor(start, folder, NOTIFY_SOCKET=str(folder / "notify")) as one:
            assert one.ready()[0] == 0
            systemd.setblocking(False)
            with pytest.raises(BlockingIOError):
                systemd.recv(1000)
            systemd.settimeout(60)
            (folder / "go").touch()
            assert systemd.recv(1000) == b"READY=1\nSTATUS=2 workers"
            one.process.send_signal(signal.SIGHUP)
            assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert systemd.recv(1000) == b"READY=1"
            one.process.send_signal(signal.SIGTERM)
            assert systemd.recv(1000) == b"STOPPING=1"
            assert one.end() == 0


def test_the_watchdog_of_systemd_is_told(folder: Path) -> None:
    """From the beginning to the end, with workers that are being started, that serve, that end."""
    (folder / "app.py").write_text(
        "import os, trio\n"
        "async def main(worker):\n"
        "    assert 'WATCHDOG_USEC' not in os.environ\n"
        "    while not os.path.exists('go'):\n"
        "        await trio.sleep(0.01)\n"
        "    worker.ready()\n"
        "    await worker.shutdown.wait()\n"
        "    while not os.path.exists('end'):\n"
        "        await trio.sleep(0.01)\n"
    )
    start = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--workers", "1"]
    variables = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "100000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(variables["NOTIFY_SOCKET"])
        systemd.settimeout(60)

        def told_until(state: bytes) -> int:
            times = 0
            while not (said := systemd.recv(1000)).startswith(state):
                assert said == b"WATCHDOG=1"
                times += 1
            return times

        def told(times: int) -> None:
            for _ in range(times):
                assert systemd.recv(1000) == b"WATCHDOG=1"

        with supervisor(start, folder, **variables) as one:
            told(5)
            (folder / "go").touch()
            told_until(b"READY=1")
            told(5)
            one.process.send_signal(signal.SIGTERM)
            told_until(b"STOPPING=1")
            told(5)
            (folder / "end").touch()
            assert one.end() == 0


def test_a_watchdog_that_makes_no_sense_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "10s")
    *_, line = serve("package:main", folder=folder)
    assert line.endswith("serve: WATCHDOG_USEC is not a number: '10s'")


def test_nobody_reads_what_systemd_is_told(folder: Path) -> None:
    (folder / "app.py").write_text("async def main(worker):\n    worker.ready()\n    1 / 0\n")
    start = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--failures-max", "1"]
    with supervisor(start, folder, NOTIFY_SOCKET="/nowhere/notify") as one:
        one.wait_for("systemd could not be told 'STOPPING=1'")
        assert one.end() == 1


def test_sockets_of_systemd(folder: Path) -> None:
    """They stay open when all of it ends, so another one takes what waits."""
    (folder / "app.py").write_text(APP.format(version="one"))
    start = [sys.executable, "-m", "trio_uring", "serve", "app:main", "--bind", "systemd"]
    environment = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    become = f"exec 3<&0 0</dev/null; LISTEN_PID=$$ exec {shlex.join([*start, '--workers', '2'])}"
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        for _ in range(2):
            with supervisor(["sh", "-c", become], folder, stdin=given, **environment) as one:
                one.wait_for(f"listening on 127.0.0.1:{port}")
                one.wait_for("all workers are ready")
                assert request(port)[0] == "one"
                assert one.end(signal.SIGTERM) == 0
            waiting = socket.create_connection(("127.0.0.1", port))
            waiting.close()
    [line] = serve("app:main", "--bind", "systemd", folder=folder)
    assert line.endswith("'systemd' is to be listened on, and LISTEN_FDS has no sockets")
