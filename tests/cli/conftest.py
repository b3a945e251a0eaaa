"""The program of tests/support/started.py, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.started import PROGRAM


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path
