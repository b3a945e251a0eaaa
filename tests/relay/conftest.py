"""Where the tests of relays and files have their files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.disks import WHY_NONE, disk

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A new directory, whose files can be read without waiting."""
    parent = disk()
    if parent is None:
        pytest.skip(WHY_NONE)
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        yield Path(directory)
