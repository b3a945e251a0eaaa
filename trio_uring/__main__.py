"""The command line: `python -m trio_uring run`, `info`, `doctor`, `demo` and so on.

Rules of this file: it finds the command and reports errors, one sentence for each. A command is a
module with `add_arguments(parser)` and `run(arguments)`, which is imported only if it is the one
that is asked for: what one of them needs, no other has to wait for, or to do without on platforms
that lack it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from . import __version__
from ._cli.launch import split
from ._errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {  # its module, and what it does
    "run": (
        "_cli.launch",
        "run a program as it is, with every trio.run in it and in its children enabled",
    ),
    "serve": (
        "_cli.serve",
        "run a function in several worker processes on the same addresses, and keep them going",
    ),
    "info": (
        "_cli.info",
        "show what io_uring offers on this machine and how trio_uring uses it, or why it cannot",
    ),
    "doctor": (
        "_cli.doctor",
        "say what stands in the way of io_uring here, in words, and what to change",
    ),
    "seccomp": (
        "_cli.seccomp",
        "print the profile, the Pod or the lines of a unit that allow io_uring",
    ),
    "demo": (
        "_demo.command",
        "show what it gains in 15 seconds: four servers on trio_uring and on trio, under the same "
        "load, with everything that comes back checked",
    ),
    "bench": (
        "_bench.command",
        "measure servers of trio_uring, trio, asyncio and C under the same load, side by side, and "
        "write tables and plots",
    ),
}


class _Command(argparse.ArgumentParser):
    """The parser of one command, which knows all that may follow its name.

    argparse leaves what it does not know to the parser of the whole, whose usage is of no help.
    """

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        found, unknown = super().parse_known_args(*arguments, **named)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def make_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trio_uring",
        description="trio's sockets, streams and listeners driven by Linux's io_uring.",
    )
    parser.add_argument("--version", action="version", version=f"trio_uring {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )
    for name, (_, what) in _COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if name in words:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"{__package__}.{_COMMANDS[command][0]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (None: that of the process) and returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = f"python -m trio_uring {words[0]}" if words else "python -m trio_uring"
    try:
        status = _run(words)
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads standard output, such as `head`, has had enough; Python flushes it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except CommandError as exc:
        print(f"{name}: {exc}", file=sys.stderr)
        return exc.status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    program: list[str] = []
    if words[:1] == ["run"]:
        words, program = split(words)
    arguments = make_parser(words).parse_args(words)
    arguments.program = program
    status: int = _module(arguments.command).run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
