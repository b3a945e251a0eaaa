"""The tutorial, as a reader goes through it: each program is run as it stands in docs/tutorial.md.

Rules of this file: the programs are the page's; only the port is another one, which the kernel
chooses. A test waits for what a process prints, or for its end, never for some time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.pages import BLOCKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = [block for block in BLOCKS if block.page == "tutorial"]
PROGRAMS = [block.code for block in PAGE if block.language == "python"]
OUTPUTS = [block.code for block in PAGE if block.language == "text"]
SECONDS_MAX = 100  # for a process to end, or a socket to answer
WARNINGS = [sys.executable, "-W", "error"]


def programs(first_line: str) -> list[str]:
    return [code for code in PROGRAMS if code.splitlines()[0] == first_line]


ECHO, GRACEFUL, MEASURED = programs("# echo.py")
[SURVIVES] = programs("# echo.py, from here on")
[LIMITS] = programs("# echo.py, in main")
[CLIENT], [TESTS], [LOAD] = (programs(f"# {name}.py") for name in ("client", "test_echo", "load"))
PRINTED, ENDED, PASSED = OUTPUTS


@contextlib.contextmanager
def serving(program: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Runs a server of the page's; with its port."""
    assert program.count("8000") == 1
    (folder / "echo.py").write_text(program.replace("8000", "0"))
    with subprocess.Popen(
        [*WARNINGS, "echo.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1 "), process.communicate()
            yield process, int(line.split()[-1])
        finally:
            process.kill()


def run(program: str, folder: Path, port: int, *arguments: str) -> str:
    assert program.count("8000") == 1
    done = subprocess.run(
        [*WARNINGS, "-c", program.replace("8000", str(port)), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_program_of_the_page_is_run_here() -> None:
    """Those that are a part of a program are in the next one, as they are."""
    assert len(PROGRAMS) == 8
    part = SURVIVES.partition("\n")[2]
    assert part in GRACEFUL
    assert part in MEASURED
    for line in LIMITS.splitlines()[1:]:
        assert line.partition("  #")[0].strip() in GRACEFUL.replace("    ", ""), line
    assert GRACEFUL.partition("async def main")[0] in MEASURED.replace(
        MEASURED[MEASURED.index("def operations") : MEASURED.index("async def main")], ""
    )


@pytest.mark.parametrize("program", [ECHO, GRACEFUL, MEASURED], ids=["first", "graceful", "last"])
def test_the_client_gets_its_answer(program: str, tmp_path: Path) -> None:
    with serving(program, tmp_path) as (_, port):
        assert run(CLIENT, tmp_path, port) == PRINTED


def test_parts_of_the_program_work_where_they_are_said_to_belong(tmp_path: Path) -> None:
    """Steps 2 and 3, done by hand."""
    old = ECHO[ECHO.index("async def echo") : ECHO.index("async def main")]
    program = ECHO.replace(old, SURVIVES.partition("\n")[2] + "\n\n")
    [line] = [each for each in ECHO.splitlines() if "serve = " in each]
    program = program.replace(line + "\n", LIMITS.partition("\n")[2])
    with serving(program, tmp_path) as (_, port):
        assert run(CLIENT, tmp_path, port) == PRINTED


@pytest.mark.parametrize("program", [GRACEFUL, MEASURED], ids=["graceful", "last"])
def test_it_survives_a_client_that_resets_its_connection(program: str, tmp_path: Path) -> None:
    with serving(program, tmp_path) as (_, port):
        client = socket.create_connection(("127.0.0.1", port), SECONDS_MAX)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"hello")
        client.close()
        assert run(CLIENT, tmp_path, port) == PRINTED


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("program", [GRACEFUL, MEASURED], ids=["graceful", "last"])
def test_it_ends_gracefully(program: str, stop: signal.Signals, tmp_path: Path) -> None:
    with serving(program, tmp_path) as (server, port):
        with socket.create_connection(("127.0.0.1", port), SECONDS_MAX) as client:
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            server.send_signal(stop)
            assert client.recv(1) == b""  # the end, and no reset
        out, err = server.communicate(timeout=SECONDS_MAX)
        assert (server.returncode, out.splitlines()[-1] + "\n", err) == (0, ENDED, "")


def test_its_tests_pass(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(GRACEFUL)
    (tmp_path / "test_echo.py").write_text(TESTS)
    command = [*WARNINGS, "-m", "pytest", "-q", "-o", "trio_mode=true", "test_echo.py"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(PASSED.strip()), done.stdout


def test_it_says_what_it_does_under_a_load(tmp_path: Path) -> None:
    with serving(MEASURED, tmp_path) as (server, port):
        assert run(LOAD, tmp_path, port, "20").endswith(" messages/s\n")
        assert server.stdout is not None
        assert " operations/s, " in server.stdout.readline()
