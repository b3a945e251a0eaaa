"""`python -m trio_uring serve module:main`: serve_workers from the command line.

Rules of this file: what can be wrong is a CommandError, in one line. What the supervisor does is
logged to standard error, with the time.
"""

from __future__ import annotations

import argparse
import contextlib
import logging

from .. import serve_workers
from .._driver.backend import BACKENDS
from .._errors import CommandError, RingUnavailableError, WorkersError

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class ServeError(CommandError):
    """It cannot be started, or was given up; `status` says which."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "main", metavar="MODULE:FUNCTION", help="what each worker runs: async def main(worker)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="one for each CPU if not given")
    parser.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="HOST:PORT, :PORT, [IPv6]:PORT, unix:PATH, or systemd (the sockets that it has "
        "opened), for worker.listeners; may be given again",
    )
    parser.add_argument(
        "--unix-mode",
        type=_permissions,
        metavar="MODE",
        help="permissions of the files of unix:PATH, such as 660; whoever may write may connect",
    )
    parser.add_argument(
        "--reuse-port", action="store_true", help="a queue for each worker (SO_REUSEPORT)"
    )
    parser.add_argument("--backend", metavar="B", help=f"of the workers: {', '.join(BACKENDS)}")
    _add_limits(parser)
    parser.epilog = (
        "Signals: SIGTERM and SIGINT end it gracefully, SIGHUP replaces the workers one by one. "
        "Example: serve app:main --workers 4 --bind :8000 --metrics 127.0.0.1:9100"
    )


def _permissions(text: str) -> int:
    with contextlib.suppress(ValueError):
        mode = int(text, 8)
        if 0 <= mode <= 0o777:
            return mode
    raise argparse.ArgumentTypeError(f"{text!r} is no octal number up to 777, such as 660")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="that connections have to finish at the end (%(default)s)",
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="from a worker's start until it has to be ready (%(default)s)",
    )
    parser.add_argument(
        "--failures-max",
        type=int,
        default=8,
        metavar="N",
        help="failures in a row of one worker, after which all is given up (%(default)s)",
    )
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="of a page /metrics with the metrics of all workers"
    )


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
    try:
        serve_workers(
            arguments.main,
            arguments.workers,
            bind=arguments.bind,
            unix_mode=arguments.unix_mode,
            reuse_port=arguments.reuse_port,
            backend=arguments.backend,
            grace=arguments.grace,
            ready_timeout=arguments.ready_timeout,
            failures_max=arguments.failures_max,
            metrics=arguments.metrics,
        )
    except WorkersError as exc:
        raise ServeError(str(exc), exc.status) from exc
    except RingUnavailableError as exc:
        raise ServeError(str(exc.strerror), 2) from exc
    except (ValueError, OSError, RuntimeError, ImportError) as exc:
        raise ServeError(str(exc), 2) from exc
    return 0
