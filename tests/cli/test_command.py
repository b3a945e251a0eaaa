"""The command line: what `python -m trio_uring` prints, and its exit status.

The demo is tested in tests/demo.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.command import command, no_ring

import trio_uring
from trio_uring import __main__
from trio_uring._cli import info as _info
from trio_uring._driver import backend as _backend
from trio_uring._ring.figures import POOL_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence


# -- arguments


@pytest.mark.no_ring
def test_version_and_help() -> None:
    assert command("--version").stdout == f"trio_uring {trio_uring.__version__}\n"
    assert "demo" in command("-h").stdout
    assert "--seconds" in command("demo", "-h").stdout
    assert "--clients" in command("demo", "files", "-h").stdout


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["demo", "files", "--clients", "0"], "0 is less than 1"),
        (["demo", "files", "--clients", "x"], "'x' is not a whole number"),
        (["demo", "files", "--clients", "99999999"], "limit of open files"),
        (["demo", "files", "--directory", "/nowhere"], "/nowhere is not a directory"),
        (["demo", "files", "--max-mib", "-1"], "-1 is less than 1"),
        (["demo", "--seconds", "0"], "0 is not between 0 and 3,600"),
        (["demo", "--seconds", "nan"], "nan is not between"),
        (["demo", "--seconds", "abc"], "'abc' is not a number of seconds"),
        (["demo", "files", "--rounds", "2.5"], "'2.5' is not a whole number"),
        (["demo", "nonsense"], "nonsense"),
        (["doctor", "--json", "x", "-y"], "doctor: error: unrecognized arguments: x -y"),
        (["serve", "app:main", "--bogus"], "serve: error: unrecognized arguments: --bogus"),
    ],
)
def test_wrong_arguments(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.no_ring
def test_the_usage_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["doctor", "--bogus"])
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "usage: python -m trio_uring doctor [-h] [--json]"


def test_who_reads_may_have_had_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trio_uring", "info"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


# -- info


@pytest.mark.uring_only("what the kernel's ring says")
def test_info_on_the_real_ring() -> None:
    done = command("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^backend +io_uring\nio_uring +available\n", done.stdout, re.MULTILINE)
    assert re.search(r"^  opcodes lacking +none$", done.stdout, re.MULTILINE)
    assert "not tested" not in done.stdout
    for word in (
        "kernel.io_uring_disabled",
        "RLIMIT_MEMLOCK",
        "CQSIZE",
        "NODROP",
        "FAST_POLL",
        "SENDMSG",
        "SMALL_SIZE",
    ):
        assert word in done.stdout


def test_info_without_a_ring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRIO_URING_BACKEND", raising=False)
    monkeypatch.setattr(_backend, "UringRing", no_ring)
    _backend._Memory.forget()
    assert __main__.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^backend +readiness: io_uring_setup failed with EPERM: forbidden by a test$",
        out,
        re.MULTILINE,
    )
    assert re.search(
        r"^io_uring +not available: io_uring_setup failed with EPERM: forbidden by a test$",
        out,
        re.MULTILINE,
    )


@pytest.mark.no_ring
@pytest.mark.parametrize("asked", ["uring", "nonsense"])
def test_info_where_what_is_asked_for_cannot_be_had(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", asked)
    monkeypatch.setattr(_backend, "UringRing", no_ring)
    _backend._Memory.forget()
    assert __main__.main(["info"]) == 0
    assert re.search(
        r"^backend +none: .*TRIO_URING_BACKEND", capsys.readouterr().out, re.MULTILINE | re.DOTALL
    )


@pytest.mark.uring_only("a ring that opens without them")
def test_info_names_what_a_ring_lacks_and_what_was_not_tested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ring, _ = _backend.open_uring()
    ring.info = dataclasses.replace(ring.info, lacking=("READ", "WRITEV"))
    monkeypatch.setattr(_info, "open_uring", lambda **_: (ring, "no thread could be started"))
    assert __main__.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  opcodes lacking +READ WRITEV$", out, re.MULTILINE)
    assert re.search(r"^  not tested +no thread could be started$", out, re.MULTILINE)
    assert ring.close()


@pytest.mark.no_ring
def test_info_says_how_much_memory_the_buffers_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["info"]) == 0
    size = POOL_SIZE // 1024
    out = capsys.readouterr().out
    assert re.search(rf"^  memory of all buffers +{size} KiB ", out, re.MULTILINE)


@pytest.mark.no_ring
def test_info_says_unknown_where_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_info, "_SYSCTL", "/nowhere")
    assert __main__.main(["info"]) == 0
    assert re.search(r"kernel.io_uring_disabled +unknown", capsys.readouterr().out)


@pytest.mark.no_ring
def test_info_where_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", "off")
    assert __main__.main(["info"]) == 0
    assert re.search(
        r"^backend +readiness: off is asked for by the environment variable TRIO_URING_BACKEND\n"
        r" +an enabled run is trio's own; ",
        capsys.readouterr().out,
        re.MULTILINE,
    )


@pytest.mark.no_ring
def test_feature_names() -> None:
    assert _info.feature_names(0) == []
    assert _info.feature_names(0b11) == ["SINGLE_MMAP", "NODROP"]
    assert _info.feature_names(1 << 40 | 1) == ["SINGLE_MMAP", "0x10000000000"]


@pytest.mark.no_ring
@pytest.mark.parametrize("variable", ["TRIO_URING_BACKEND", "TRIO_URING_DRIVER"])
def test_a_wrong_variable_is_one_sentence(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_URING_BACKEND", "readiness")
    monkeypatch.setenv(variable, "nonsense")
    assert __main__.main(["info"]) == 0
    [line] = [each for each in capsys.readouterr().out.splitlines() if each.startswith("backend")]
    assert "none: " in line
    assert "is 'nonsense'" in line
    assert __main__.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("python -m trio_uring demo: ")
    assert "is 'nonsense'" in said
    assert said.count("\n") == 1


def test_an_interruption_before_the_command_has_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control-C may come while what the command needs is imported."""

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "_module", interrupted)
    assert __main__.main(["demo"]) == 130
    assert capsys.readouterr().err == "python -m trio_uring demo: interrupted\n"
