"""README: its program runs, its commands exist, and its figures are those of the last benchmark.

Rules of this file: README is read as text, and no block of it goes without a test.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from trio_uring import __main__

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
SECONDS_MAX = 100

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OUTSIDE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    (\S.*)$", OUTSIDE, re.MULTILINE)
PROSE = re.sub(r"^    .*$", "", OUTSIDE, flags=re.MULTILINE)
ASIDE = re.findall(r"`([^`]*python -m trio_uring [^`]*)`", PROSE)


def test_every_block_is_one_of_these() -> None:
    assert [language for language, _ in BLOCKS] == ["diff", "python"]
    starts = ["pip install 'git+REPOSITORY'", "python3 -m venv .venv", "python3 -m venv .venv"]
    assert [command[: len(start)] for command, start in zip(COMMANDS, starts)] == starts
    assert len(COMMANDS) == len(starts)


# -- the program

PROGRAM = dict(BLOCKS)["python"]
REMOVED, ADDED = (line[1:] for line in dict(BLOCKS)["diff"].splitlines())


def test_the_diff_is_one_word_of_the_program() -> None:
    assert PROGRAM.count(ADDED) == 1
    assert REMOVED.split(".")[1:] == ADDED.split(".")[1:]


@pytest.mark.parametrize("run", [ADDED, REMOVED])
def test_the_program_survives_a_reset_and_says_where_it_listens(run: str) -> None:
    code = PROGRAM.replace(ADDED, run).replace("8000", "0")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), process.communicate(timeout=SECONDS_MAX)
            port = int(line.split()[-1])
            with connect(port) as rude:  # which leaves in the middle of its answer
                rude.sendall(b"x" * 1_000_000)
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with connect(port) as sock:
                sock.sendall(b"still there")
                assert sock.recv(100) == b"still there"
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=SECONDS_MAX)
            assert "KeyboardInterrupt" in stderr
            assert "Error" not in stderr
        finally:
            process.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX)


# -- the commands


@pytest.mark.no_ring
def test_what_is_installed_exists() -> None:
    extras = set(re.findall(r"\[(\w+)\]'", " ".join(COMMANDS)))
    project = (ROOT / "pyproject.toml").read_text()
    assert extras == {"dev"}
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)


@pytest.mark.no_ring
@pytest.mark.parametrize("command", [*COMMANDS[1:], *ASIDE])
def test_a_command_is_one_of_ours(command: str) -> None:
    words = shlex.split(command)
    if "pytest" in words:
        return  # that is how this test is run
    arguments = words[len(words) - words[::-1].index("trio_uring") :]
    if arguments[0] == "run":
        assert arguments[1:3] == ["-m", "hypercorn"]
        arguments = arguments[:1]
    parsed = __main__.make_parser(arguments).parse_args(arguments)
    assert parsed.command == arguments[0]


# -- the figures

ROWS = {  # of README's table: the workload, and who is compared
    "echo of 1 KiB, 50 connections": ("50x1K", "ring"),
    "echo of 1 KiB, 500 connections": ("500x1K", "ring"),
    "the same, without io_uring": ("500x1K", "readiness"),
    "echo of 64 KiB, 16 connections": ("16x64K", "ring"),
    "echo of 1 MiB, one connection": ("1x1M", "ring"),
    "a proxy in bulk (`relay`)": ("relay-bulk-1x256K", "ring"),
    "a cached file (`send_file`)": ("send-file-1x16M", "ring"),
    "datagrams in batches (`receive_many`, `send_many`)": ("udp-many-50x64", "ring"),
    "a websockets server": ("websockets-64x100", "ring"),
    "echo of 1 KiB, one connection": ("1x1K", "ring"),
    "echo over TLS, 50 connections": ("tls-50x1K", "ring"),
    "hypercorn, whose time is its own Python": ("hypercorn-64x5", "ring"),
    "datagrams one at a time": ("udp-50x64", "ring"),
}


def cells(line: str) -> list[str]:
    return [cell.strip(" `") for cell in line.strip().strip("|").split("|")]


def tables() -> dict[str, dict[str, str]]:
    """The rows of the tables of docs/performance.md that have ratios, by workload."""
    found: dict[str, dict[str, str]] = {}
    for block in re.findall(r"^\| \| unit \|.*?\n\n", PERFORMANCE, re.MULTILINE | re.DOTALL):
        head, _, *lines = block.strip().splitlines()
        for line in lines:
            found[cells(line)[0]] = dict(zip(cells(head), cells(line)))
    return found


@pytest.mark.no_ring
def test_the_table_is_that_of_the_last_benchmark() -> None:
    measured = tables()
    rows = [cells(line) for line in README.splitlines() if re.match(r"\| [\w`]", line)]
    names = [name.replace("(relay", "(`relay") for name, *_ in rows]
    assert len(names) == len(ROWS)
    for (_, trio, uvloop), name, (expected, (workload, peer)) in zip(rows, names, ROWS.items()):
        assert name.replace("`", "") == expected.replace("`", "")
        figures = measured[workload]
        assert trio == figures[f"{peer} to trio"], name
        if not uvloop:
            continue
        if peer == "ring":
            assert uvloop == figures["ring to uvloop"], name
        else:
            assert f"| {workload}: {peer} / uvloop | 1.00 | {uvloop} |" in PERFORMANCE


@pytest.mark.no_ring
def test_the_first_sentences_have_the_same_figures() -> None:
    measured = tables()
    [said] = re.findall(
        r"with 50 connections needs ([\d.]+) of the CPU time\s+that it needs on trio,"
        r" and one with 5,000 connections ([\d.]+)\.",
        README,
    )
    assert said == tuple(measured[name]["ring to trio"] for name in ("50x1K", "5000x1K"))


@pytest.mark.no_ring
def test_the_date_and_the_machine_are_those_of_the_benchmark() -> None:
    [date] = re.findall(r"table were measured on ([\d-]+),", README)
    assert f"Measured {date} on 2 CPUs" in PERFORMANCE
    for what in ("AMD EPYC", "Linux 6.18", "trio 0.35", "uvloop 0.23", "Python 3.11"):
        assert what in " ".join(README.split())
        assert what in " ".join(PERFORMANCE.split())
