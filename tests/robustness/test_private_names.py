"""Each private name of trio's may be missing: import and streams work, and what is lost is
reported.

Rules of this file: each test has a new interpreter, in which a stand-in for trio's module hides the
name before trio_uring is imported (without.py). trio itself still uses the real module.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import without
from support.long_cases import long

from trio_uring import _trio

ROOT = Path(__file__).parents[1]
# Those of sockets are hidden in tests/sockets/test_private_names.py: trio's own sockets would not
# work without.
# A process for each costs half a second of processor time: one in four is enough for a first look.
NAMES = [
    (pytest.param if number % 4 == 0 else long)(module, private.name.removeprefix(f"{module}."))
    for number, private in enumerate(_trio.NAMES)
    for module in ("trio._core._run", "trio._core._io_epoll", "trio._util")
    if private.name.startswith(f"{module}.")
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_it_works_without(module, name):
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}; "
        f"from {without.__name__} import main; main(*sys.argv[1:])"
    )
    command = [sys.executable, "-W", "error", "-c", code, module, name]
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
