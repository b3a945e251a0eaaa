"""The load generator and the floor, compiled on the spot.

Rules of this file: without a compiler there is one sentence, not a traceback.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "load"
CFLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
COMPILE_SECONDS_MAX = 60.0


class BuildError(Exception):
    """There is no compiler, or it did not work; the message says why."""


@dataclass(frozen=True)
class Programs:
    loadgen: Path
    floor: Path


def _compile(name: str, folder: Path, compiler: list[str]) -> Path:
    binary = folder / name
    command = [*compiler, *CFLAGS, str(SOURCES / f"{name}.c"), "-o", str(binary), "-lm"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(
            f"the load generator needs a C compiler, and {compiler[0]} cannot be run: {error}"
        ) from error
    if done.returncode:
        raise BuildError(f"{name}.c does not compile:\n{shlex.join(command)}\n{done.stderr}")
    return binary


def compile_programs(folder: Path) -> Programs:
    """Compiles both into this folder, with `$CC` or cc. Raises BuildError."""
    compiler = shlex.split(os.environ.get("CC", "cc")) or ["cc"]
    return Programs(*(_compile(name, folder, compiler) for name in ("loadgen", "floor")))
