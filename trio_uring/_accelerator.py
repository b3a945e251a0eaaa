"""The accelerator, `_hot`, a C extension; or why there is none, and Python does it all.

It is optional twice over: it is built where there is a compiler, and used where trio is as it
expects. What it does is written in Python as well, and that is the specification (PEP 399).
TRIO_URING_ACCELERATOR=0 switches it off.

Rules of this file: importing never fails.
"""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "TRIO_URING_ACCELERATOR"
NOT_BUILT = "it was not built"


def _load() -> tuple[Any, str | None]:
    """The extension, or None and why."""
    if os.environ.get(VARIABLE, "1") == "0":
        return None, f"the environment variable {VARIABLE} is 0"
    if "t" in getattr(sys, "abiflags", ""):  # sysconfig says the same, in 5 ms
        return None, "this Python has no GIL, which the accelerator relies on"
    try:
        import trio_uring._hot as _hot
    except ImportError as exc:
        return None, f"{NOT_BUILT} ({exc})"
    except Exception as exc:  # a trio that has another shape
        return None, f"this trio is not as it expects ({exc})"
    if not _hot.is_at_home():
        return None, "another interpreter of this process uses it"
    return _hot, None


hot, why_not = _load()
