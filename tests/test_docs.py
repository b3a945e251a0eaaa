"""The documents: every example in the guides is a program that runs, and what they name exists.

Rules of this file: each block runs in its own process, with warnings as errors. A document is read
as text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = {
    "network": 6,
    "enabling": 4,
    "fallback": 1,
    "serving": 5,
    "operating": 1,
}  # and how many programs they have
TEXTS = {name: (DOCS / f"{name}.md").read_text() for name in GUIDES}
BLOCKS = [
    pytest.param(code, id=f"{name}: {title}")
    for name, text in TEXTS.items()
    for title, code in re.findall(
        r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", text, re.DOTALL
    )
]


@pytest.mark.parametrize("code", BLOCKS)
def test_an_example(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_examples_are_found() -> None:
    assert {name: text.count("```python") for name, text in TEXTS.items()} == GUIDES
    assert len(BLOCKS) == sum(GUIDES.values())


# -- what documents name

DOCUMENTS = [
    pytest.param(path, id=path.relative_to(ROOT).as_posix())
    for path in sorted(
        [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    )
]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What a link can point at in a document: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path if not file else path.parent / file
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", DOCUMENTS)
def test_paths_that_are_named_exist(path: Path) -> None:
    """Of this repository or of the package: those with a folder and an ending."""
    if path.name == "CHANGELOG.md":  # what was is told there, too
        return
    named = re.findall(r"`((?:\w[\w-]*/|\.\w+/)+\w[\w-]*(?:\.(?:py|md|c|h))?/?)`", prose(path))
    ours = [
        name
        for name in named
        if name.split("/")[0] in {"tests", "trio_uring", "docs", "benchmarks", "examples", ".ci"}
        or name.startswith("_")
    ]
    for name in ours:
        assert (ROOT / name).exists() or (ROOT / "trio_uring" / name).exists(), name


def test_helpers_are_where_hacking_says() -> None:
    """``name` in `tests/path.py``: the file defines the name."""
    text = " ".join(prose(DOCS / "hacking.md").split())
    found = re.findall(r"((?:`\w+`(?:, | and ))*`\w+`) in `(tests/[\w/]+\.py)`", text)
    assert len(found) > 10
    for names, file in found:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:(?:async )?def|class) {name}\b|^{name} = ", source, re.M), name
