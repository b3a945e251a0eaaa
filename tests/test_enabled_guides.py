"""The guides' programs again, with every trio.run in them enabled: they work there, too.

Rules of this file: the programs run in this process, with warnings as errors. tests/test_docs.py
tests that they work as they are. The examples in docs/testing.md are for pytest, and
test_pytest_plugin runs them, enabled as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

import trio_uring

DOCS = Path(__file__).parents[1] / "docs"
PROGRAMS = [
    pytest.param(code, id=f"{guide}-{number}")
    for guide in ("network", "enabling")
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{guide}.md").read_text(), re.M | re.S)
    )
]
stock_run = trio.run


def enabled_run(*args: Any, instruments: Any = (), **kwargs: Any) -> Any:
    return stock_run(*args, instruments=[trio_uring.Enable(), *instruments], **kwargs)


@pytest.mark.parametrize("code", PROGRAMS)
def test_a_program_of_the_guides_in_an_enabled_run(code, monkeypatch):
    monkeypatch.setattr(trio, "run", enabled_run)
    exec(compile(code, "<guide>", "exec"), {"__name__": "__main__"})


def test_all_programs_are_found():
    assert len(PROGRAMS) == 10
