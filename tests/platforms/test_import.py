"""Importing: it is quick, and works in a sub-interpreter and without each of the extensions.

Rules of this file: each test has a new interpreter.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trio_uring

pytestmark = pytest.mark.no_ring

TRIES = 7
SECONDS_MAX = 0.030  # of CPU time, more than trio's
# What only some programs need.
NEVER = {
    "argparse", "asyncio", "cffi", "prometheus_client", "pytest", "sysconfig", "trio.testing",
    "trio_uring._bench", "trio_uring._cli", "trio_uring._demo", "trio_uring.prometheus",
    "trio_uring.testing", "unittest",
}  # fmt: skip


def run(code: str, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=os.environ | environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_costs_little_more_than_trio(tmp_path: Path) -> None:
    code = (
        "import trio, time; begin = time.process_time(); import trio_uring; "
        "print(time.process_time() - begin)"
    )
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    took = [float(run(code, **compiled)) for _ in range(TRIES)]
    # The least, since what else the machine does only adds to it. The first compiles everything.
    assert min(took[1:]) < SECONDS_MAX, took


def test_what_importing_brings() -> None:
    code = "import sys, trio; had = {*sys.modules}; import trio_uring; print(*{*sys.modules} - had)"
    brought = set(run(code).split())
    assert "trio_uring" in brought
    assert not brought & NEVER


def test_what_is_imported_later_is_what_type_checkers_see() -> None:
    tree = ast.parse(Path(trio_uring.__file__).read_text())
    [checked] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        node.module: tuple(alias.name for alias in node.names)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == trio_uring._LATER
    assert {name for names in seen.values() for name in names} <= set(trio_uring.__all__)


def test_every_name_is_there() -> None:
    code = """
import trio_uring
assert set(trio_uring.__all__) <= set(dir(trio_uring))
for name in trio_uring.__all__:
    assert getattr(trio_uring, name) is getattr(trio_uring, name)
assert trio_uring.metrics.Metrics is trio_uring.Metrics
from trio_uring import *
UDPSocket, relay
try:
    trio_uring.no_such_name
except AttributeError as exc:
    assert str(exc) == "module 'trio_uring' has no attribute 'no_such_name'"
else:
    raise AssertionError
"""
    assert run(code, "-W", "error") == ""


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the module has this shape in 3.11")
def test_a_sub_interpreter() -> None:
    """Where trio can be imported. The extensions may refuse: then it waits by readiness."""
    code = """
import _xxsubinterpreters as interpreters

PROGRAM = '''
import socket, trio, trio_uring
async def main():
    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right:
        await left.send_all([b"a", b"b"])
        assert await right.receive_exactly(2) == b"ab"
    print(trio_uring.backend_info().backend)
trio.run(main)
trio_uring.run(main)
'''
for _ in range(2):
    number = interpreters.create(isolated=False)
    interpreters.run_string(number, PROGRAM)
    interpreters.destroy(number)
import trio_uring
exec(PROGRAM)
"""
    assert set(run(code).split()) <= {"uring", "readiness"}


@pytest.mark.parametrize("hidden", ["trio_uring._uring", "trio_uring._hot", "_cffi_backend"])
def test_one_extension_is_missing(hidden: str) -> None:
    code = f"""
import logging, sys
sys.modules[{hidden!r}] = None
import socket, trio, trio_uring
logging.disable()  # an enabled run says that it falls back
async def main():
    left, right = map(trio_uring.SocketStream, socket.socketpair())
    async with left, right:
        await left.send_all([b"a", b"b"])
        assert await right.receive_exactly(2) == b"ab"
        assert isinstance(left.socket, trio.socket.SocketType)
    print(trio_uring.backend_info().backend)
trio.run(main)
trio_uring.run(main)
"""
    said = set(run(code).split())
    assert said == {"readiness"} if hidden != "trio_uring._hot" else said
