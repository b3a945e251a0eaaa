"""A program that says what it sees, started with and without `python -m trio_uring run`.

Rules of this file: each program is a process of its own, with an environment that has this package
and is not enabled already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_uring import __main__
from trio_uring._cli import launch as _launch

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN = (sys.executable, "-m", "trio_uring", "run")
PACKAGE = str(Path(__main__.__file__).parents[1])
SECONDS_MAX = 100

# Says, as JSON, what it sees of its surroundings, and whether its run is enabled.
PROGRAM = """
import json, os, sys
import trio

async def kind():
    left, right = trio.socket.socketpair()
    with left, right:
        await left.send(b"x")
        await right.recv(1)
        return type(left).__name__

def seen():
    return {
        "argv": sys.argv, "path": sys.path, "pid": os.getpid(), "flags": list(sys.flags),
        "executable": sys.executable, "orig_argv": sys.orig_argv, "cwd": os.getcwd(),
        "site": getattr(sys, "site_said", None), "socket": trio.run(kind),
        "backend": os.environ.get("TRIO_URING_BACKEND"), "loader": type(trio.__loader__).__name__,
        "modules": [name for name in sys.modules if "sitecustomize" in name],
    }

if __name__ == "__main__":
    print(json.dumps(seen()))
"""


def execute(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != _launch.VARIABLE}
    environment["PYTHONPATH"] = PACKAGE
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


def seen(command: Sequence[str | Path], folder: Path, **variables: str) -> dict[str, Any]:
    done = execute(command, folder, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return dict(json.loads(done.stdout))
