"""The arguments of `demo` and `demo files`.

Rules of this file: a wrong argument is one sentence.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SECONDS_MAX = 3600  # of the whole demo
DESCRIPTORS_KEPT = 64  # reserved, of RLIMIT_NOFILE, for everything but the demo's connections


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {SECONDS_MAX:,}")
    return value


def add_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        help="about how long it may take in all (default: %(default)g)",
    )
    parts = demo.add_subparsers(dest="part", metavar="files", title="the long one")
    what = (
        "serve the files of a directory over loopback to many clients, on trio_uring's streams and "
        "on trio's own, verify every checksum and compare the two, with system calls"
    )
    _add_files_arguments(
        parts.add_parser("files", help=what, description=f"{what[0].upper()}{what[1:]}.")
    )


def _add_files_arguments(demo: argparse.ArgumentParser) -> None:
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
