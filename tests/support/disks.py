"""A file system that says what it has in memory, and pipes that do.

Rules of this file: where /tmp is a tmpfs, as on many machines, or an overlay, as in containers,
another directory is looked for.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WHY_NONE = "no file system here can be read without waiting (tmpfs and overlayfs cannot)"


@functools.cache
def disk() -> Path | None:
    """A directory whose files can be read without waiting (RWF_NOWAIT)."""
    for directory in (Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT):
        if os.access(directory, os.W_OK) and _reads_without_waiting(directory):
            return directory
    return None


def _reads_without_waiting(directory: Path) -> bool:
    if not hasattr(os, "RWF_NOWAIT"):  # so no test is about it
        return True
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x")
        file.flush()
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except OSError:
            return False


@functools.cache
def pipes_do_not_wait() -> bool:
    """Before Linux 6.4, the kernel has a worker thread read what has come, and keeps one."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    read, write = os.pipe()
    try:
        os.preadv(read, [bytearray(1)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(read)
        os.close(write)
    raise AssertionError("an empty pipe was read")
