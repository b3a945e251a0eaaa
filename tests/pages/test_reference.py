"""Nothing that users can name is missing from the site: names, commands, variables, and the private
names of trio.

Rules of this file: pages are compared with the source as texts; Sphinx is not needed. `.ci/docs`
shows that each of these is rendered.
"""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from support.pages import BLOCKS, DOCS, ROOT

import trio_uring
import trio_uring.pytest_plugin
import trio_uring.testing
from trio_uring import __main__, audit, framing, metrics, prometheus
from trio_uring._trio import NAMES

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "trio_uring"
DIRECTIVE = re.compile(r"^\.\. (auto(?:class|exception|function|data)):: ([\w.]+)$", re.MULTILINE)
DIRECTIVES = [
    (kind, name)
    for block in BLOCKS
    if block.page.startswith("reference/")
    for kind, name in DIRECTIVE.findall(block.code)
]


def named() -> set[str]:
    return {name.removeprefix("trio_uring.") for _, name in DIRECTIVES}


def defined_in(module: ModuleType) -> list[str]:
    """What a public module defines itself."""
    return [
        node.name
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
    ]


def test_every_public_name() -> None:
    modules = {n for n in trio_uring.__all__ if isinstance(getattr(trio_uring, n), ModuleType)}
    assert modules == {"socket"}
    assert set(trio_uring.__all__) - modules <= named()


@pytest.mark.parametrize("module", [audit, framing, metrics, prometheus, trio_uring.socket])
def test_every_name_of_a_public_module(module: ModuleType) -> None:
    short = module.__name__.removeprefix("trio_uring.")
    assert not [name for name in defined_in(module) if not {name, f"{short}.{name}"} & named()]


def test_every_name_for_tests() -> None:
    plugin = trio_uring.pytest_plugin.__all__
    assert {f"testing.{name}" for name in trio_uring.testing.__all__} <= named()
    fixtures = {name for name in plugin if not name.startswith(("_", "pytest_"))}
    assert {f"pytest_plugin.{name}" for name in fixtures} <= named()


def test_every_public_module() -> None:
    text = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    public = {f"trio_uring.{path.stem}" for path in PACKAGE.glob("[a-z]*.py")}
    assert not [name for name in public if not re.search(rf"{re.escape(name)}\b", text)]


def test_what_is_named_exists_and_is_what_it_is_called() -> None:
    for kind, name in DIRECTIVES:
        value: object = trio_uring
        for part in name.split(".")[1:]:
            value = getattr(value, part)
        if inspect.isclass(value):
            error = issubclass(value, Exception)
            assert kind == ("autoexception" if error else "autoclass"), name
        if kind == "autofunction":
            assert callable(value), name
        assert inspect.isclass(value) or kind in ("autofunction", "autodata"), name


def test_nothing_is_there_twice() -> None:
    names = [name for _, name in DIRECTIVES]
    assert sorted(names) == sorted(set(names))


# -- docstrings

SECTION = re.compile(r"^(Args|Raises|Attributes):\n((?:    .*\n?|\n(?=    ))+)", re.MULTILINE)
ENTRY = {
    "Raises": re.compile(r"(Others|[\w.]+(, [\w.]+)*): \S"),
    "Args": re.compile(r"\*{0,2}\w+(, \*{0,2}\w+)*: \S"),
    "Attributes": re.compile(r"\w+(, \w+)*: \S"),
}


@pytest.mark.parametrize("path", [*sorted(PACKAGE.rglob("*.py"))], ids=lambda path: path.stem)
def test_sections_of_docstrings_are_lists_of_names(path: Path) -> None:
    """Otherwise a sentence would be rendered as the name of an exception."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for section, text in SECTION.findall(ast.get_docstring(node) or ""):
            for entry in re.findall(r"^    (\S.*)", text, re.MULTILINE):
                assert ENTRY[section].match(entry), f"{node.name}, {section}: {entry}"


# -- commands, variables, private names

COMMANDS = (DOCS / "reference" / "commands.md").read_text()


def test_every_command() -> None:
    assert set(re.findall(r"^## `python -m trio_uring (\w+)", COMMANDS, re.M)) == set(
        __main__._COMMANDS
    )


def test_every_variable() -> None:
    sources = [*PACKAGE.rglob("*.py"), ROOT / "_trio_uring_pytestplugin.py", ROOT / "setup.py"]
    used = {
        name
        for path in sources
        for name in re.findall(r"\bTRIO_URING_[A-Z_]*[A-Z]\b", path.read_text())
    }
    assert set(re.findall(r"^\| `(TRIO_URING_\w+)", COMMANDS, re.MULTILINE)) == used


def test_every_private_name_of_trios() -> None:
    text = (DOCS / "explanation" / "support.md").read_text()
    table = dict(re.findall(r"^\| (.*?) \| (.*) \|$", text, re.MULTILINE))
    for private in NAMES:
        assert private.lost in table, private.lost
        names = re.findall(r"`([^`]+)`", table[private.lost]) or [table[private.lost]]
        assert private.name in names, private.name
    told = [table[lost] for lost in {private.lost for private in NAMES}]
    assert sum(len(re.findall(r"`[^`]+`", names)) or 1 for names in told) == len(NAMES)
