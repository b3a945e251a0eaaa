"""Programs that call serve_workers by themselves, and `serve` with what it cannot do.

Rules of this file: each program is a process of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from support.command import command
from support.workers import pids, request, supervisor

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
        (["package"], "'package' is not MODULE:FUNCTION"),
        (["package.py:main"], "there is no module 'package.py'"),
        (["package:main", "--bind", "localhost"], "'localhost' is not HOST:PORT, :PORT or"),
        (["package:main", "--workers", "0"], "there must be at least 1 worker, not 0"),
        (["package:main", "--grace", "-1"], "timeout must be a number of seconds >= 0"),
        (["package:main", "--backend", "kqueue"], "'kqueue': a backend is one of"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], says: str, folder: Path) -> None:
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
