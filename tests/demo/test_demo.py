"""The demo, and what the command line prints about it.

Rules: the whole demo runs (servers, clients, cancellations, report), over a directory small enough
to take a second. No speed is asserted, only what must be true on every machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
from support.command import command, no_ring

import trio_uring
from trio_uring import __main__
from trio_uring._cli import process as _process
from trio_uring._demo import demo as _demo
from trio_uring._demo import files as _demo_files
from trio_uring._demo import report as _demo_report
from trio_uring._demo import server as _demo_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small files and one that is large enough to be cut."""
    for number in range(10):
        (tmp_path / f"file{number}").write_bytes(os.urandom(1000 + number))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "large").write_bytes(os.urandom(600_000))
    return tmp_path


def small_demo(folder: Path, *more: str) -> list[str | Path]:
    return [
        "demo",
        "--directory",
        folder,
        "--clients",
        "5",
        "--max-mib",
        "1",
        "--rounds",
        "1",
        *more,
    ]


def numbers(out: str, row: str) -> list[str]:
    """The two columns of a row of the report."""
    match = re.search(rf"^ *{re.escape(row)} +([\d.,]+) +([\d.,]+)", out, re.MULTILINE)
    assert match, out
    return [match[1], match[2]]


def test_demo(folder: Path) -> None:
    done = command(*small_demo(folder))
    assert done.returncode == 0, done.stderr
    files = numbers(done.stdout, "files received")
    assert files[0] == files[1]
    assert numbers(done.stdout, "clients cancelled mid-file") == ["1", "1"]
    assert numbers(done.stdout, "files resumed") == ["1", "1"]
    assert numbers(done.stdout, "checksum failures") == ["0", "0"]
    assert "came with the right checksum" in done.stdout
    assert re.search(r"operations .*SENDMSG", done.stdout)
    assert "\r" not in done.stderr
    assert "trio_uring, round 1 of 1" in done.stderr
    assert "system calls" in done.stdout


def test_demo_fails_on_a_wrong_checksum(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    honest = _demo_files.scan

    def scan(*arguments: Any) -> list[_demo_files.File]:
        first, *rest = honest(*arguments)
        return [_demo_files.File(first.name, first.size, bytes(32)), *rest]

    monkeypatch.setattr(_demo, "scan", scan)
    assert __main__.main([str(each) for each in small_demo(folder)]) == 1
    out = capsys.readouterr().out
    assert numbers(out, "checksum failures") != ["0", "0"]
    assert "came with a wrong checksum, the first of them file0" in out
    assert "system calls: not counted: strace is not installed" in out


def test_demo_says_why_it_cannot_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server ends at once, because a file is not there any more."""

    def scan(*_: Any) -> list[_demo_files.File]:
        return [_demo_files.File("gone", 100, bytes(32))]

    monkeypatch.setattr(_demo, "scan", scan)
    assert __main__.main([str(each) for each in small_demo(folder)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "python -m trio_uring demo: the server ended before its time; "
        "the server said: FileNotFoundError"
    )


def test_demo_with_nothing_to_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    assert __main__.main(["demo", "--directory", str(tmp_path)]) == 1
    assert "no file to serve" in capsys.readouterr().err


@pytest.mark.no_ring
def test_demo_without_a_ring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_demo, "backend_info", no_ring)
    assert __main__.main([str(each) for each in small_demo(folder)]) == 1
    why = "no ring: io_uring_setup failed with EPERM: forbidden by a test"
    assert capsys.readouterr().err == f"python -m trio_uring demo: {why}\n"


def test_demo_says_what_it_runs_on(folder: Path) -> None:
    done = command(*small_demo(folder), env={**os.environ, "TRIO_URING_BACKEND": "epoll"})
    assert done.returncode == 0, done.stderr
    why = "because readiness is asked for by the environment variable TRIO_URING_BACKEND"
    assert f"trio_uring runs on readiness, {why}.\n" in done.stdout
    assert re.search(r"^  flushes +[\d,]+ in [\d,]+ scheduler passes", done.stdout, re.MULTILINE)


def test_trio_s_own_stays_trio_s_own_where_all_runs_are_enabled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the demo would compare trio_uring with itself."""
    monkeypatch.setenv("TRIO_URING_INSTALL", "1")
    kinds: set[type] = set()
    run_client = _demo_files.run_client

    async def run(*args: Any) -> None:
        with trio.socket.socket() as sock:
            kinds.add(type(sock))
        await run_client(*args)

    monkeypatch.setattr(_demo, "run_client", run)
    trio_uring.install()
    try:
        assert __main__.main([str(each) for each in small_demo(folder)]) == 0
    finally:
        trio_uring.uninstall()
    assert kinds
    assert trio_uring.UringSocket not in kinds


@pytest.mark.uring_only("a ring that is seen from outside")
@pytest.mark.parametrize(("stack", "rings"), [("trio", 0), ("trio_uring", 1)])
def test_which_server_has_a_ring(stack: str, rings: int, folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "trio_uring._demo.server", stack, "-1", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRIO_URING_INSTALL": "1"},
    ) as process:
        assert process.stdin
        assert process.stdout
        print("[]", file=process.stdin, flush=True)
        port = json.loads(process.stdout.readline())["port"]
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # it was served
        assert len(_process._rings(process.pid)) == rings
        process.stdin.close()


@pytest.mark.no_ring
def test_the_work_is_the_same_for_the_same_seed(folder: Path) -> None:
    files = _demo_files.scan(folder, (), 2**20)
    assert [file.name for file in files] == [
        *(f"file{number}" for number in range(10)),
        "sub/large",
    ]

    def plan(seed: int) -> list[tuple[str, int | None]]:
        downloads = _demo.Work(folder, files, 5, seed).downloads(3 * 2**20)
        return [(download.file.name, download.cut) for download in downloads]

    assert plan(1) == plan(1) != plan(2)
    assert any(cut is not None for _, cut in plan(1))


@pytest.mark.no_ring
def test_scan_leaves_out_what_it_should(folder: Path) -> None:
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "module.py").write_bytes(b"1")
    (folder / "empty.py").touch()
    (folder / "module.py").write_bytes(b"1")
    (folder / "broken.py").symlink_to("nowhere")
    os.mkfifo(folder / "fifo.py")
    assert [file.name for file in _demo_files.scan(folder, (".py",), 100)] == ["module.py"]
    assert sum(file.size for file in _demo_files.scan(folder, (), 5000)) <= 5000
    with pytest.raises(FileNotFoundError):
        _demo_files.scan(folder / "nowhere", (), 100)


@pytest.mark.no_ring
def test_count_calls() -> None:
    trace = f"""\
12 read(3, "", 10) = 0
12 access("{_demo_server.MARK_START}", F_OK) = -1 ENOENT (No such file or directory)
12 io_uring_enter(5, 1, 0, 0, NULL, 0) = 1
12 epoll_wait(4,  <unfinished ...>
13 sendto(7, "epoll_ctl(", 10) = 10
12 <... epoll_wait resumed>[], 10, 0) = 0
12 --- SIGCHLD {{si_signo=SIGCHLD}} ---
io_uring_enter(5, 1, 0, 0, NULL, 0) = 1
12 access("{_demo_server.MARK_STOP}", F_OK) = -1 ENOENT (No such file or directory)
12 close(3) = 0
"""
    assert _demo.count_calls(trace) == Counter(io_uring_enter=2, epoll_wait=1, sendto=1)
    assert _demo.count_calls("") == Counter()


class Terminal:
    """Stands for standard error."""

    def __init__(self, is_terminal: bool) -> None:
        self.text = ""
        self.isatty = lambda: is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.no_ring
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with _demo_report.Progress(total=200) as progress:
        progress.start("first")
        progress.show(50)
        progress.show(100)
        progress.start("second")
        progress.show(100)
        progress.start("not counted", counted=False)
        progress.show(1000)
    if is_terminal:
        assert "\n" not in terminal.text
        shown = re.findall(r"\r\[[#-]{30}\] +(\d+)%  ([a-z ]+)\x1b\[K", terminal.text)
        assert shown == [
            ("0", "first"), ("25", "first"), ("50", "first"), ("50", "second"), ("100", "second"),
            ("100", "not counted"), ("100", "not counted"),
        ]  # fmt: skip
        assert terminal.text.endswith("\r\x1b[K")
    else:
        assert re.findall(r"^\[[#-]{30}\] +(\d+)%  ([a-z ]+)$", terminal.text, re.MULTILINE) == [
            ("0", "first"), ("50", "second"), ("100", "not counted"),
        ]  # fmt: skip
        assert "\r" not in terminal.text
