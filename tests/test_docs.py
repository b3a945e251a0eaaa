"""The guides: every example in them is a program that runs.

Rules of this file: each block in a process of its own, with warnings as errors.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = {"network": 6, "enabling": 3, "fallback": 1}  # and how many programs they have
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
