"""Processes that were left to the supervisor, where it is process 1 of a container.

Process 1 becomes the parent of every process whose own parent has ended. When such an orphan ends,
somebody has to wait for it, or it stays as a zombie and keeps its number.

Rules of this file: nobody's status is taken from whoever waits for it. wait(2) for any child would
take a worker's; so the kernel is asked who has ended, without waiting for it, and then only an
orphan is waited for.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

REAP_SECONDS = 1.0  # how long a zombie may stay

_log = logging.getLogger("trio_uring")


def gets_orphans() -> bool:
    """Whether this process has to wait for the orphans of others."""
    return os.getpid() == 1 and hasattr(os, "waitid")  # which PyPy lacks


def reap(ours: Collection[int]) -> None:
    """Waits for the orphans that have ended.

    One of `ours` that has ended may hide others, until it is waited for by whom it belongs to.

    Args:
        ours: the numbers of the children that this process has started. None may be missing.
    """
    if sys.platform in ("win32", "darwin"):  # whose process 1 is never ours
        raise AssertionError
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there is none
            return
        if ended is None or ended.si_pid in ours:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
        _log.debug("process %d, whose parent had ended, has ended", ended.si_pid)
