"""`info --pid`: what /proc tells of a process that runs, that waits by readiness, or that is gone.

Rules of this file: the processes are real ones; what cannot be provoked here (another user's
process, an old kernel) is a folder that looks like /proc.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trio_uring import __main__
from trio_uring._cli import process as _process

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc"),
]

PROGRAM = """
import sys, trio, trio_uring

async def main():
    left, right = trio.socket.socketpair()
    await left.send(b"x")
    await right.recv(1)
    print(trio_uring.backend_info().backend, flush=True)
    await trio.to_thread.run_sync(sys.stdin.read)

trio_uring.run(main)
"""


@contextlib.contextmanager
def running(**variables: str) -> Iterator[tuple[int, str]]:
    """A process in an enabled run; gives its number and what it runs on."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        assert process.stdout
        assert process.stdin
        yield process.pid, process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(60) == 0


def described(pid: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert __main__.main(["info", "--pid", str(pid)]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.uring_only("a ring that is seen from outside")
def test_a_process_on_io_uring(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as (pid, backend):
        assert backend == "uring"
        text = described(pid, capsys)
    assert f"process {pid}: {sys.executable} -c" in text
    assert "io_uring 1 ring is open. It may belong to another library" in text
    assert re.search(r"descriptor \d+ queues of 256 and 4096 entries; \d+ operations", text)
    assert "C extension trio_uring's is loaded" in text


@pytest.mark.parametrize("asked", ["readiness", "off"])
def test_a_process_that_waits_by_readiness(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    with running(TRIO_URING_BACKEND=asked) as (pid, backend):
        assert backend == "readiness"
        text = described(pid, capsys)
    assert "io_uring no ring is open: " in text
    assert "only the process itself knows: its log (logger trio_uring)" in text
    assert f"variables at its start TRIO_URING_BACKEND={asked} " in text


def test_a_process_that_has_nothing_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("TRIO_URING_")]:
        monkeypatch.delenv(name)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        while (Path("/proc") / str(process.pid) / "cmdline").read_bytes() != b"cat\0":
            pass  # it is not cat before its exec
        text = described(process.pid, capsys)
    assert "no ring is open" in text
    assert "C extension trio_uring's is not loaded, so no ring can be trio_uring's" in text
    assert "variables at its start none of trio_uring's (what it set later is not seen)" in text


def test_no_such_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["info", "--pid", str(2**30)]) == 1
    told = f"python -m trio_uring info: there is no process with the number {2**30}\n"
    assert capsys.readouterr() == ("", told)


def test_a_process_that_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert __main__.main(["info", "--pid", str(process.pid)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the process {process.pid} has ended, and its parent has not collected" in said.err


def test_what_a_process_calls_itself_does_not_control_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables = {**os.environ, "TRIO_URING_SEED": "\x1b[2J"}
    command = ["sh", "-c", "echo; read x", "\x1b]0;title\x07\n\nof it"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        assert __main__.main(["info", "--pid", str(process.pid)]) == 0
        process.stdin.close()
    text = capsys.readouterr().out
    assert text.startswith(
        f"process                     {process.pid}: sh -c echo; read x ]0;title"
    )
    assert not [each for each in text if not each.isprintable() and each != "\n"]
    assert "TRIO_URING_SEED= [2J" in text


def test_the_extension_of_one_python_s_own_abi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a free-threaded build has it."""
    (tmp_path / "7" / "fd").mkdir(parents=True)
    name = "_uring.cpython-313t-x86_64-linux-gnu.so"
    (tmp_path / "7" / "maps").write_text(f"7f00-7f01 r-xp 0 08:01 1  /site/trio_uring/{name}\n")
    monkeypatch.setattr(_process, "_PROC", tmp_path)
    assert "C extension trio_uring's is loaded" in described(7, capsys)


def test_no_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_process, "_PROC", tmp_path)
    assert __main__.main(["info", "--pid", "1"]) == 1
    assert "there is no /proc here that tells of processes" in capsys.readouterr().err


def test_a_process_of_somebody_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_process.os, "listdir", refused)
    assert __main__.main(["info", "--pid", "1"]) == 1
    assert "cannot be read (EACCES): that takes the same user, or root" in capsys.readouterr().err


def test_what_cannot_be_read_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "7" / "fd"
    folder.mkdir(parents=True)
    (folder / "3").symlink_to(_process.RING)
    (folder / "4").symlink_to("socket:[1]")
    (folder / "5").symlink_to(_process.RING)
    (tmp_path / "7" / "fdinfo").mkdir()
    (tmp_path / "7" / "fdinfo" / "5").write_text("pos:\t0\nSqMask:\tnonsense\n")
    monkeypatch.setattr(_process, "_PROC", tmp_path)
    text = described(7, capsys)
    assert "process 7: its command is unknown" in text
    assert "io_uring 2 rings are open." in text
    assert "descriptor 3 this kernel tells no more of it descriptor 5 this kernel" in text
    assert "C extension unknown: its memory map may not be read" in text
    assert "variables at its start unknown: its environment may not be read" in text
