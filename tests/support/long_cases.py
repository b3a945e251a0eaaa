"""How much the tests do: everything with `--long` or TRIO_URING_LONG=1, as in CI.

Otherwise long cases are skipped, and random ones do a fifth.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

VARIABLE = "TRIO_URING_LONG"


def long_cases() -> bool:
    return os.environ.get(VARIABLE) == "1"


def examples(count: int) -> int:
    """How many examples there are to be, of `count` in a long run: of hypothesis, seeds, rounds."""
    return count if long_cases() else max(count // 5, 10)


def long(*values: Any, **options: Any) -> Any:
    """The parameters of a long case."""
    return pytest.param(*values, marks=pytest.mark.long, **options)
