"""The pages of the site, as text: which there are, and the blocks of code in them.

Rules of this file: pages are read, never rendered; `.ci/docs` renders them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def page_name(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(page_name(path), text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
