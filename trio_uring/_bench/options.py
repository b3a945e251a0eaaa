"""The arguments of `bench`.

Rules of this file: a wrong argument is one sentence.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .peers import PEERS
from .schedule import Plan
from .workloads import GROUPS, NAMES, PREFIXES, expand, parse

ROUNDS_MAX, SECONDS_MAX = 1000, 600.0


def bounded_rounds(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0  # no whole number
    if not 1 <= value <= ROUNDS_MAX:
        raise argparse.ArgumentTypeError(f"from 1 to {ROUNDS_MAX}")
    return value


def bounded_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0  # no number
    if not 0.05 <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"from 0.05 to {SECONDS_MAX:g} seconds")
    return value


def _workload(text: str) -> str:
    if text not in GROUPS:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives this parser the arguments."""
    parser.add_argument("--quick", action="store_true", help="a first impression, in two minutes")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        metavar="PEER",
        help=f"who is compared (default: whoever is installed of {', '.join(PEERS)})",
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        type=_workload,
        metavar="WORKLOAD",
        help="what is measured: 50x1K is 50 connections with messages of 1 KiB; kinds are written "
        f"before it ({', '.join(f'{prefix}-' for prefix in PREFIXES)}, list256-); idle-10000; "
        f"cancel-10000; startup; or a group: {', '.join(GROUPS)} (default: default)",
    )
    parser.add_argument("--rounds", type=bounded_rounds, help="rounds of each peer (default: 5)")
    parser.add_argument("--seconds", type=bounded_seconds, help="of a round (default: 0.5)")
    parser.add_argument("--seed", type=int, help="of the order of the rounds (default: the time)")
    _add_outputs(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list", action="store_true", help="say what the workloads, groups and peers are, and stop"
    )
    parser.add_argument(
        "--document",
        type=Path,
        metavar="FILE",
        help="write docs/performance.md, or another such document, with its plots beside it",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="measure nothing: the document is made of the medians of these reports",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where report.txt, report.json and the plots go (default: a new directory here)",
    )


def list_lines() -> list[str]:
    """What can be asked for."""
    groups = [f"    {name:12}{' '.join(names)}" for name, names in GROUPS.items()]
    peers = [f"    {name:22}{peer.what}" for name, peer in PEERS.items()]
    return ["workloads", *NAMES.splitlines(), "", "groups", *groups, "", "peers", *peers]


def plan_of(arguments: argparse.Namespace) -> Plan:
    """How much these arguments ask for."""
    quick: bool = arguments.quick
    rounds = arguments.rounds or (3 if quick else 5)
    return Plan(
        rounds=rounds,
        paced_rounds=1 if quick else min(2, rounds),
        seconds=arguments.seconds or (0.25 if quick else 0.5),
        warmup=0.05 if quick else 0.1,
        seed=int(time.time()) if arguments.seed is None else arguments.seed,
        again=1 if quick else rounds,
    )


def workloads_of(arguments: argparse.Namespace) -> list[str]:
    """The names of the workloads that are asked for, each once."""
    asked = arguments.workloads or ["quick" if arguments.quick else "default"]
    return [workload.name for workload in expand(asked)]
