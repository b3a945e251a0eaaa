"""The command line as a process, for its tests."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

from trio_uring import RingUnavailableError

SECONDS_MAX = 60


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-W", "error", "-m", "trio_uring", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=SECONDS_MAX, **options)


def no_ring(*_: object, **__: object) -> None:
    raise RingUnavailableError(errno.EPERM, "io_uring_setup failed with EPERM: forbidden by a test")
