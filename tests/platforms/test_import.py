"""Importing: it brings little, and works in a sub-interpreter and without each of the extensions.

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

MODULES_MAX = 60  # of this package. The ratchet: fewer is a reason to lower it
# What trio does not import; the second is cffi's part of the extension.
STANDARD = {"dataclasses", "_cffi_backend", "mmap"}
# What only some programs need.
NEVER = {
    "trio_uring._bench", "trio_uring._cli", "trio_uring._demo", "trio_uring.prometheus",
    "trio_uring.testing",
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


def test_importing_brings_little_that_trio_does_not() -> None:
    """`bench --workloads startup` measures it; here is what keeps it cheap."""
    code = "import sys, trio; had = {*sys.modules}; import trio_uring; print(*{*sys.modules} - had)"
    brought = set(run(code).split())
    ours = {name for name in brought if name.partition(".")[0] == "trio_uring"}
    assert "trio_uring" in ours
    assert len(ours) <= MODULES_MAX
    assert not ours & NEVER
    assert brought - ours <= STANDARD


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
