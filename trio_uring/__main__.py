"""The command line: `python -m trio_uring run`, `demo`, `bench`, `info`, `--version`.

Rules of this file: it parses arguments and reports errors, one sentence for each; the work is done
in _demo/demo.py, _bench/command.py and _cli.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from ._bench import command as bench
from ._bench.options import add_arguments
from ._cli.info import describe
from ._cli.launch import LaunchError, launch, split
from ._cli.process import UnknownProcessError, describe_process
from ._demo.demo import DemoError, run
from ._driver.backend import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Sequence

DESCRIPTORS_KEPT = 64  # reserved, of RLIMIT_NOFILE, for everything but the demo's connections


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _clients(text: str) -> int:
    value = _count(text)
    if sys.platform == "win32":
        return value
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - DESCRIPTORS_KEPT
    if value > most:
        raise argparse.ArgumentTypeError(
            f"{text} is more than the {most} that the limit of open files (ulimit -n) allows"
        )
    return value


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return path


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trio_uring",
        description="trio's sockets, streams and listeners driven by Linux's io_uring.",
    )
    parser.add_argument("--version", action="version", version=f"trio_uring {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    what = "run a program as it is, with every trio.run in it and in its children enabled"
    _add_run(commands.add_parser("run", help=what, description=f"{what[0].upper()}{what[1:]}."))
    what = "show what io_uring offers on this machine and how trio_uring uses it, or why it cannot"
    info = commands.add_parser("info", help=what, description=f"{what[0].upper()}{what[1:]}.")
    info.add_argument(
        "--pid", type=_count, metavar="N", help="instead: whether the process N has a ring open"
    )
    what = (
        "serve files over loopback to many clients, on trio_uring's streams and on trio's own, "
        "verify every checksum and compare the two"
    )
    _add_demo(commands.add_parser("demo", help=what, description=f"{what[0].upper()}{what[1:]}."))
    what = (
        "measure servers of trio_uring, trio, asyncio and C under the same load, side by side, and "
        "write tables and plots"
    )
    add_arguments(
        commands.add_parser("bench", help=what, description=f"{what[0].upper()}{what[1:]}.")
    )
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.usage = f"{run.prog} [-h] [--backend B] (-m MODULE | SCRIPT | COMMAND) [ARGUMENT ...]"
    run.add_argument(
        "--backend",
        metavar="B",
        help=f"{', '.join(BACKENDS)}: sets TRIO_URING_BACKEND for the program",
    )
    run.epilog = "Examples: run -m hypercorn -k trio -w 4 app:app; run server.py; run pytest"


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--directory",
        type=_directory,
        help="serve the files below this directory (default: the *.py and *.so files of Python's "
        "standard library)",
    )
    demo.add_argument(
        "--clients",
        type=_clients,
        default=50,
        help="number of clients at the same time (default: %(default)s)",
    )
    demo.add_argument(
        "--max-mib",
        type=_count,
        default=256,
        help="MiB to serve in each round (default: %(default)s)",
    )
    demo.add_argument(
        "--rounds",
        type=_count,
        default=5,
        help="rounds for each kind of stream (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed for the order of the files and for which downloads are cancelled "
        "(default: %(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (None: that of the process) and returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    program: list[str] = []
    if words[:1] == ["run"]:
        words, program = split(words)
    arguments = make_parser().parse_args(words)
    try:
        if arguments.command == "run":
            return launch(program, arguments.backend)
        if arguments.command == "info":
            lines = describe() if arguments.pid is None else describe_process(arguments.pid)
            print("\n".join(lines))
            return 0
        return bench.run(arguments) if arguments.command == "bench" else run(arguments)
    except (DemoError, UnknownProcessError) as exc:
        print(f"python -m trio_uring {arguments.command}: {exc}", file=sys.stderr)
        return 1
    except LaunchError as exc:
        print(f"python -m trio_uring run: {exc}", file=sys.stderr)
        return exc.status
    except KeyboardInterrupt:
        print(f"python -m trio_uring {arguments.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
