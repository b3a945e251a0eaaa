"""The command line as a process, for its tests."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trio_uring import RingUnavailableError

SECONDS_MAX = 100  # for what takes a few, on a machine that is busy


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-W", "error", "-m", "trio_uring", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS_MAX, **options)


def no_ring(*_: object, **__: object) -> None:
    raise RingUnavailableError(errno.EPERM, "io_uring_setup failed with EPERM: forbidden by a test")


def group_ends(group: int) -> bool:
    """Whether a process group has no process any more, before long."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
