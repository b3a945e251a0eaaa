"""What .ci/pypy says where PyPy cannot be had.

Rules of this file: nothing is fetched; the script sees only the commands that a test gives it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / ".ci" / "pypy"
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
        [shutil.which("bash") or "bash", SCRIPT, "python3"],
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
