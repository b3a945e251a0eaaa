"""What `doctor` advises fits the reason that it gives.

Rules of this file: the evidence is made up; nothing is looked at.
"""

from __future__ import annotations

import dataclasses

import pytest

from trio_uring._cli.causes import examine

from .test_doctor import GOOD


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        ("it was not built (No module named 'trio_uring._hot')", "install a wheel"),
        ("the environment variable TRIO_URING_ACCELERATOR is 0", "unset TRIO_URING_ACCELERATOR"),
        ("this Python has no GIL, which the accelerator relies on", None),
    ],
)
def test_the_fix_of_a_missing_accelerator(why: str, fix: str | None) -> None:
    """Only what would help is advised."""
    [found] = [
        each
        for each in examine(dataclasses.replace(GOOD, no_accelerator=why))
        if each.name == "accelerator"
    ]
    assert (found.fix or "").startswith(fix or "")
    assert (found.fix is None) == (fix is None)
    assert ("compiler" in str(found.fix)) == ("built" in why)
    assert ("TRIO_URING" in str(found.fix)) == ("TRIO_URING" in (fix or ""))
