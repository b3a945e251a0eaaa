"""What .ci/pypy says where PyPy cannot be had, and what .ci/tests forgives.

Rules of this file: nothing is fetched; .ci/pypy sees only the commands that a test gives it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / ".ci"
NEEDS = ("awk", "bash", "cat", "dirname", "mkdir", "mktemp", "rm", "tail", "touch", "uname")

pytestmark = [
    pytest.mark.no_ring,
    pytest.mark.skipif(not all(map(shutil.which, NEEDS)), reason="it is a script for bash"),
]


def run(commands: Path) -> tuple[int, list[str]]:
    """Its exit status and lines, with these commands beside the usual ones."""
    for name in NEEDS:
        (commands / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [shutil.which("bash") or "bash", SCRIPTS / "pypy", "python3"],
        env={"PATH": str(commands)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_no_package_manager(tmp_path: Path) -> None:
    status, [line] = run(tmp_path)
    assert status == 77
    assert line.startswith("PyPy: not tested, no pypy3 of Python 3.10 or newer is on the PATH, and")
    assert line.endswith("there is no apt-get to fetch one with")


def test_no_network(tmp_path: Path) -> None:
    program = """#!/bin/sh
        case "$*" in
            *--print-uris*) echo "'file:///nowhere/dists/stable/InRelease' InRelease 0" ;;
            *) echo 'E: Temporary failure resolving'; exit 100 ;;
        esac
    """
    for name in ("apt-get", "dpkg"):
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    status, [line] = run(tmp_path)
    assert status == 77
    assert line.startswith("PyPy: not tested, no pypy3")
    assert line.endswith(("E: Temporary failure resolving", "it is fetched for x86-64 only"))


def test_a_pypy_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "pypy3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pypy3").chmod(0o755)
    status, [line] = run(tmp_path)
    assert (status, line.endswith("there is no apt-get to fetch one with")) == (77, True)


FAILS = "raise AssertionError('this failed')"


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second", "options", "expect"),
    [
        ("pass", "pass", "", 0),
        (FAILS, "pass", "", 0),
        (FAILS, "pass", "-n 1", 0),
        (FAILS, FAILS, "", 1),
        ("raise AssertionError('test(): hung for 120 s')", "pass", "", 1),
        ("raise AssertionError('test(): exit code -11')", "pass", "", 1),
        ("os._exit(0)", "pass", "-n 1", 1),
    ],
)
def test_what_is_forgiven(
    tmp_path: Path, first: str, second: str, options: str, expect: int
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_terminal_summary as pytest_terminal_summary\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_it():\n"
        "    try:\n"
        "        open('begun', 'x').close()\n"
        "    except FileExistsError:\n"
        f"        {second}\n"
        "    else:\n"
        f"        {first}\n"
    )
    done = subprocess.run(
        [SCRIPTS / "tests", sys.executable, "-m", "pytest", "-q", options, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    assert ("this failed" in done.stdout) == (first == FAILS), done.stdout
    if first == FAILS:
        assert "RERUN test_it.py::test_it" in done.stdout
        assert "failed once: test_it.py::test_it" in done.stdout
