"""Files whose file system says what it has in memory.

Rules of this file: where /tmp is a tmpfs, as on many machines, or an overlay, as in containers,
another directory is looked for.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Path]:
    """A new directory, on a file system that can be read without waiting (RWF_NOWAIT)."""
    for parent in (tmp_path, Path("/var/tmp"), ROOT):
        if not os.access(parent, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            if reads_without_waiting(Path(directory)):
                yield Path(directory)
                return
    pytest.skip("no file system here can be read without waiting (tmpfs and overlayfs cannot)")


def reads_without_waiting(directory: Path) -> bool:
    if not hasattr(os, "RWF_NOWAIT"):  # so no test is about it
        return True
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x")
        file.flush()
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except OSError:
            return False
