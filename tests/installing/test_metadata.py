"""What the package says of itself, and what the documents say about getting it.

Rules of this file: files are read as text; nothing is built. `.ci/wheels` builds, and looks into
what it has built.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import trio_uring

ROOT = Path(__file__).parent.parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()
TOLD = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix())
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "examples/*.py")
    for path in sorted(ROOT.glob(pattern))
]

pytestmark = pytest.mark.no_ring


def test_the_version_is_in_one_place() -> None:
    """A literal, since setuptools reads it without importing the package."""
    assert 'dynamic = ["version"]' in PROJECT
    assert 'version = { attr = "trio_uring.__version__" }' in PROJECT
    assert not re.search(r'^version = "', PROJECT, re.MULTILINE)
    module = ast.parse((ROOT / "trio_uring" / "__init__.py").read_text())
    [found] = [
        ast.literal_eval(statement.value)
        for statement in module.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__"
    ]
    assert found == trio_uring.__version__


def test_the_changelog_begins_with_this_version() -> None:
    [first, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == trio_uring.__version__


def test_cffi_is_asked_for_where_the_extension_is_built() -> None:
    """To build and to run; elsewhere it could need a compiler, for nothing."""
    build, run = re.findall(r'"cffi>=([^"]*)"', PROJECT)
    assert build == run
    assert "platform_machine in 'x86_64 aarch64'" in run


def test_placeholders_say_that_they_are() -> None:
    """Until somebody who may publish the package puts real ones there."""
    assert "(placeholder)" in PROJECT
    urls = PROJECT.split("[project.urls]\n")[1].split("\n\n")[0]
    assert all(re.search(r'= "https://trio-uring\.invalid\b', url) for url in urls.splitlines())


@pytest.mark.parametrize("path", TOLD)
def test_nothing_says_that_an_index_has_it(path: Path) -> None:
    """`pip install trio-uring` finds nothing until there is a release, but in a folder."""
    asked = re.findall(r"(?:pip|uv|pipx)\s+(?:install|add)\b[^`&\n]*", path.read_text())
    named = [line for line in asked if re.search(r"[\s'\"]trio[-_]uring(?![\w./*-])", line)]
    assert not [line for line in named if "--no-index" not in line]
