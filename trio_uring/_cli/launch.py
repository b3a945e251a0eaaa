"""`python -m trio_uring run`: starts a program with every trio.run in it and its children enabled.

The program is not changed: an environment variable and a folder in front of PYTHONPATH make each
Python that is started in this environment run `site/sitecustomize.py`, which imports trio_uring
when the program imports trio; and trio_uring, where that variable is set, installs itself.

Rules of this file: nothing of the program is run here. It takes the place of this process (exec),
so its exit status, signals, standard streams and arguments are as they would be without. Only on
Windows, which has no exec, is it a child.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._driver.backend import BACKENDS, check_backend
from .._driver.backend import VARIABLE as BACKEND
from .._driver.run import check_ring, check_variables
from .._errors import CommandError, RingUnavailableError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import NoReturn

SITE = Path(__file__).with_name("site")
NAME = "trio_uring"
VARIABLE = "TRIO_URING_INSTALL"  # as in _streams/install.py
_SCRIPTS = (".py", ".pyw", ".pyz")
_WITHOUT_PATH = "this Python ignores PYTHONPATH or has no site (-E, -I, -S), which `run` needs"


class LaunchError(CommandError):
    """The program cannot be started; `status` is what a shell would give."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides a command line that begins with "run" into ours and the program's.

    The program begins with -m, or with the first word that is not an option or its value.
    """
    words = list(argv)
    position = 1
    while position < len(words) and words[position].startswith("-"):
        if words[position] in ("-m", "--"):
            break
        position += 2 if words[position] == "--backend" else 1
    rest = words[position:]
    return words[:position], rest[1:] if rest[:1] == ["--"] else rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [-h] [--backend B] (-m MODULE | SCRIPT | COMMAND) [ARGUMENT ...]"
    parser.add_argument(
        "--backend",
        metavar="B",
        help=f"{', '.join(BACKENDS)}: sets TRIO_URING_BACKEND for the program",
    )
    parser.epilog = "Examples: run -m hypercorn -k trio -w 4 app:app; run server.py; run pytest"


def run(arguments: argparse.Namespace) -> int:
    return launch(arguments.program, arguments.backend)


def launch(program: Sequence[str], backend: str | None) -> int:
    """Becomes the program; returns only on Windows, with its exit status.

    Args:
        program: ["-m", module, ...], [script, ...] or [command, ...].
        backend: what TRIO_URING_BACKEND is to be; None: what it is.

    Raises:
        LaunchError: it cannot be started; the text says why.
    """
    if sys.flags.ignore_environment or sys.flags.no_site:
        raise LaunchError(_WITHOUT_PATH)
    environment = _environment(backend)
    command = _command(program)
    if sys.platform == "win32":
        return _as_child(command, environment)
    _become(command, program[0], environment)


def _environment(backend: str | None) -> dict[str, str]:
    try:
        if backend is not None:
            check_backend(backend, "--backend")
        check_variables(backend is None)
        check_ring(backend)
    except RingUnavailableError as exc:
        raise LaunchError(str(exc.strerror)) from exc
    except ValueError as exc:
        raise LaunchError(str(exc)) from exc
    chosen = {} if backend is None else {BACKEND: backend}
    others = os.environ.get("PYTHONPATH")
    path = f"{SITE}{os.pathsep}{others}" if others else str(SITE)
    return {**os.environ, **chosen, VARIABLE: "1", "PYTHONPATH": path}


def _command(program: Sequence[str]) -> list[str]:
    """What to execute: this Python with a module or a script, or a command."""
    if not program:
        raise LaunchError("the program is missing: -m module, a script or a command")
    name = program[0]
    if name == "-m":
        if len(program) == 1:
            raise LaunchError("the module is missing after -m")
        return [sys.executable, *_python_options(), *program]
    found, path = shutil.which(name), Path(name)
    # What Python calls a script: a file, or a folder with a __main__.py.
    is_script = path.is_file() or (path / "__main__.py").is_file()
    if is_script and (name.endswith(_SCRIPTS) or found is None):
        return [sys.executable, *_python_options(), *program]
    if found is None:
        raise LaunchError(f"there is no script and no command {name!r}", 127)
    return [found, *program[1:]]


def _python_options() -> list[str]:
    """The options of this Python itself, like -X dev: what stands before -m trio_uring."""
    words = getattr(sys, "orig_argv", [])[1:]
    for position, word in enumerate(words):
        if re.fullmatch(r"-[A-Za-z]*m", word) and words[position + 1 : position + 2] == [NAME]:
            return [*words[:position], *([word[:-1]] if len(word) > 2 else [])]
        if word == f"-m{NAME}":
            return words[:position]
    return []


def _become(command: list[str], name: str, environment: dict[str, str]) -> NoReturn:
    """Executes; `name` is what a command that is not this Python is called by."""
    # Python ignores these two at its start, and who is executed would inherit that.
    for each in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, each), signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before Python began
            stream.flush()
    try:
        first = command[0] if command[0] == sys.executable else name
        os.execve(command[0], [first, *command[1:]], environment)
    except OSError as exc:
        raise LaunchError(f"{command[0]} cannot be started: {exc.strerror}", 126) from exc


def _as_child(command: list[str], environment: dict[str, str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console tells both
    return subprocess.run(command, env=environment, check=False).returncode
