"""On macOS, Windows and PyPy everything can be imported, and works by readiness.

Rules of this file: each test has a new interpreter, in which names are missing (elsewhere.py). What
PyPy does otherwise than CPython, and what the kernels of macOS and Windows do, is not shown here;
.ci/pypy runs suites on PyPy itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import elsewhere

from .names import PYPY, WHOLE, missing_names

pytestmark = pytest.mark.no_ring

ROOT = Path(__file__).parents[1]


def run(platform: str, missing: dict[str, list[str]], whole: tuple[str, ...] = ()) -> None:
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}; "
        f"from {elsewhere.__name__} import main; main(*sys.argv[1:])"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            code,
            platform,
            json.dumps(missing),
            json.dumps(whole),
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_a_platform_that_lacks_names(platform: str) -> None:
    missing = missing_names(platform)
    lacking = {f"{module}.{name}" for module, names in missing.items() for name in names}
    assert {"select.epoll", "os.splice", "os.eventfd", "os.O_PATH"} <= lacking
    assert ("socket.AF_UNIX" in lacking) == (platform == "win32")
    run(platform, missing, WHOLE[platform])


def test_a_python_that_lacks_names() -> None:
    run("pypy", {module: names.split() for module, names in PYPY.items()})


def test_nothing_is_missing_but_the_extensions() -> None:
    run("linux", {})
