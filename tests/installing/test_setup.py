"""What setup.py builds: with a compiler, without one, with half of one, and for other platforms.

Rules of this file: a wheel is built by setuptools' build backend, as pip does it, from a copy of
what is in the source distribution, in a process of its own. Nothing is installed or fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

setuptools = pytest.importorskip("setuptools", "77")

ROOT = Path(__file__).parent.parent.parent
BUILD = """
import sysconfig
{before}
from setuptools import build_meta
build_meta.build_wheel("dist")
"""
NO_CFFI = 'import sys; sys.modules["cffi"] = None'
NO_GIL = 'sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1'
PURE = "py3-none-any"

pytestmark = [pytest.mark.no_ring, pytest.mark.hang_seconds(300)]
needs_c = pytest.mark.skipif(
    sys.implementation.name != "cpython"
    or sysconfig.get_platform() not in ("linux-x86_64", "linux-aarch64")
    or bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    or shutil.which("cc") is None,
    reason="the extensions cannot be built here",
)


class Built(NamedTuple):
    status: int
    said: str
    tag: str  # of the wheel; "": there is none
    extensions: set[str]  # the names before the first dot
    wheel: Path | None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources."""
    for pattern in ("pyproject.toml", "*.py", "README.md", "LICENSE-*", "NOTICE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, tmp_path)
    left_out = shutil.ignore_patterns("*.so", "__pycache__", "_uring.c")
    shutil.copytree(ROOT / "trio_uring", tmp_path / "trio_uring", ignore=left_out)
    return tmp_path


def build(tree: Path, before: str = "", **environment: str) -> Built:
    inherited = {k: v for k, v in os.environ.items() if k != "TRIO_URING_EXTENSIONS"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(before=before)],
        cwd=tree,
        env={**inherited, "CFLAGS": "-O0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wheels = list(tree.glob("dist/*.whl"))
    if not wheels:
        return Built(done.returncode, done.stdout, "", set(), None)
    [wheel] = wheels
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if name.startswith("trio_uring/")]
    assert not [name for name in names if "/_c/" in name], "C sources are not for users"
    assert "trio_uring/py.typed" in names
    found = {name.split("/")[-1].split(".")[0] for name in names if name.endswith(".so")}
    tag = wheel.stem.split("-", 2)[2]
    return Built(done.returncode, done.stdout, tag, found, wheel)


@pytest.mark.long
@needs_c
def test_both_extensions(tree: Path) -> None:
    built = build(tree, TRIO_URING_EXTENSIONS="require")
    assert (built.status, built.extensions) == (0, {"_uring", "_hot"}), built.said
    assert built.tag.startswith("cp310-abi3-linux_")


@needs_c
def test_no_compiler(tree: Path) -> None:
    """The package is built all the same, and the wheel does not claim to be for this platform."""
    built = build(tree, CC="/nonexistent")
    assert (built.status, built.tag, built.extensions) == (0, PURE, set()), built.said
    for name in ("_uring", "_hot"):
        assert f"trio_uring: trio_uring.{name} was not built" in built.said
    assert "operations wait by readiness" in built.said


@needs_c
def test_no_compiler_where_one_is_required(tree: Path) -> None:
    built = build(tree, CC="/nonexistent", TRIO_URING_EXTENSIONS="require")
    assert built.status != 0
    assert built.wheel is None
    assert "It needs a C compiler" in built.said


@pytest.mark.long
@needs_c
@pytest.mark.parametrize(("broken", "left"), [("_hot", "_uring"), ("_uring", "_hot")])
def test_only_one_can_be_built(tree: Path, broken: str, left: str) -> None:
    compiler = tree / "compiler"
    sources = {"_hot": "*_c/hot/*", "_uring": "*_c/ring.c*"}[broken]
    compiler.write_text(f'#!/bin/sh\ncase "$*" in {sources}) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    built = build(tree, CC=str(compiler))
    assert (built.status, built.extensions) == (0, {left}), built.said
    assert built.tag.startswith("cp310-abi3-linux_")
    assert f"trio_uring.{broken} was not built" in built.said


@pytest.mark.long
@needs_c
def test_what_an_earlier_build_left(tree: Path) -> None:
    """All of build/ goes into the wheel: what cannot be built again must not be there."""
    first = build(tree, TRIO_URING_EXTENSIONS="require")
    assert first.wheel is not None, first.said
    first.wheel.unlink()
    for header in tree.glob("trio_uring/_c/**/*.h"):
        os.utime(header)
    built = build(tree, CC="/nonexistent")
    assert (built.status, built.tag, built.extensions) == (0, PURE, set()), built.said


@needs_c
def test_a_compiler_that_only_says_that_it_compiled(tree: Path) -> None:
    compiler = tree / "compiler"
    compiler.write_text("#!/bin/sh\nexit 0\n")
    compiler.chmod(0o755)
    built = build(tree, CC=str(compiler))
    assert (built.status, built.tag, built.extensions) == (0, PURE, set()), built.said
    assert "the compiler succeeded, but there is no" in built.said


@pytest.mark.long
@needs_c
def test_no_cffi(tree: Path) -> None:
    """As in a build without isolation: setuptools says no more than "unknown option"."""
    built = build(tree, before=NO_CFFI)
    assert (built.status, built.extensions) == (0, {"_hot"}), built.said
    assert "trio_uring._uring was not built (ModuleNotFoundError: there is no cffi)" in built.said
    assert built.wheel is not None
    built.wheel.unlink()
    required = build(tree, before=NO_CFFI, TRIO_URING_EXTENSIONS="require")
    assert required.status != 0
    assert required.wheel is None
    assert "there is no cffi" in required.said


@needs_c
def test_build_ext_asks_for_them_by_name(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "CC": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "was not built" in done.stderr


@needs_c
def test_free_threaded(tree: Path) -> None:
    """There is no stable ABI, and the accelerator relies on the GIL."""
    built = build(tree, before=NO_GIL, TRIO_URING_EXTENSIONS="require")
    assert (built.status, built.extensions) == (0, {"_uring"}), built.said
    version = "cp{}{}".format(*sys.version_info)
    assert built.tag.startswith(f"{version}-{version}")


def test_none(tree: Path) -> None:
    built = build(tree, TRIO_URING_EXTENSIONS="none", CC="/nonexistent")
    assert (built.status, built.tag, built.extensions) == (0, PURE, set()), built.said
    assert "was not built" not in built.said


def test_the_pure_wheel_is_a_package(tree: Path) -> None:
    built = build(tree, TRIO_URING_EXTENSIONS="none")
    assert built.wheel is not None, built.said
    with zipfile.ZipFile(built.wheel) as file:
        file.extractall(tree / "installed")
    code = "import trio_uring; print(trio_uring.__file__, trio_uring.backend_info().backend)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIO_URING_")}
    path = [str(tree / "installed"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    done = subprocess.run(
        # -S: an editable installation would put its own modules into this package
        [sys.executable, "-S", "-W", "error", "-c", code],
        cwd=tree / "dist",
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        str(tree / "installed" / "trio_uring" / "__init__.py"),
        "readiness",
    ]


@pytest.mark.parametrize("platform", ["macosx-11.0-arm64", "linux-riscv64", "linux-i686"])
def test_other_platforms(tree: Path, platform: str) -> None:
    built = build(tree, _PYTHON_HOST_PLATFORM=platform)
    assert (built.status, built.tag) == (0, PURE), built.said
    required = build(tree, _PYTHON_HOST_PLATFORM=platform, TRIO_URING_EXTENSIONS="require")
    assert required.status != 0
    assert "there are extensions only for CPython on Linux" in required.said


def test_a_python_of_32_bits(tree: Path) -> None:
    """On a kernel of 64, sysconfig gives the kernel's machine."""
    bits = "import sys; sys.maxsize = 2**31 - 1"
    built = build(tree, before=bits, _PYTHON_HOST_PLATFORM="linux-x86_64")
    assert (built.status, built.tag) == (0, PURE), built.said
    required = build(
        tree, before=bits, _PYTHON_HOST_PLATFORM="linux-x86_64", TRIO_URING_EXTENSIONS="require"
    )
    assert required.status != 0
    assert "on linux-x86_64, 32 bits" in required.said


@pytest.mark.parametrize("version", ["66.1.1", "75.8.0"])
def test_an_old_setuptools(tree: Path, version: str) -> None:
    built = build(tree, before=f'import setuptools; setuptools.__version__ = "{version}"')
    assert built.status != 0
    assert f"trio_uring needs setuptools 77 or newer; this is {version}" in built.said


def test_a_wrong_value(tree: Path) -> None:
    built = build(tree, TRIO_URING_EXTENSIONS="yes")
    assert built.status != 0
    assert "'yes'; it must be one of auto, require, none" in built.said
