"""`python -m trio_uring doctor`: what stands in the way of io_uring here, in words, and the fix.

It is run where the program runs: in its container, as its user, with its environment.

Rules of this file: it never fails, and changes nothing. Looking is in `evidence`, judging in
`causes`; this is what is printed, and the exit status.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from .. import __version__
from .causes import BLOCKS, IN_THE_WAY, NO_RUN, NOT_ASKED_FOR, USED, examine, verdict
from .evidence import gather
from .text import entry

if TYPE_CHECKING:
    import argparse

    from .evidence import Evidence

_STATUSES = (
    f"Exit status: {USED}: io_uring is used. {IN_THE_WAY}: something is in the way, and runs wait "
    f"by readiness. {NOT_ASKED_FOR}: readiness, or nothing of trio_uring's, is asked for by "
    f"TRIO_URING_BACKEND. {NO_RUN}: no run begins, since a variable is wrong, or io_uring is asked "
    "for and cannot be had. 2: wrong arguments."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.epilog = _STATUSES


def run(arguments: argparse.Namespace) -> int:
    seen = gather()
    print(as_json(seen) if arguments.json else "\n".join(describe(seen)))
    return verdict(seen)[0]


def describe(seen: Evidence) -> list[str]:
    """The lines that `doctor` prints."""
    lines = []
    for finding in examine(seen):
        lines += entry(finding.name, f"{finding.state}: {finding.text}")
        if finding.fix is not None:
            lines += entry("", f"-> {finding.fix}")
    status, text = verdict(seen)
    return [*lines, "", *entry("verdict", text), *entry("exit status", str(status))]


def as_json(seen: Evidence) -> str:
    """One object: `status`, `verdict`, `backend` (None: no run begins), and `findings`."""
    status, text = verdict(seen)
    found = [dataclasses.asdict(each) for each in examine(seen)]
    return json.dumps(
        {
            "version": __version__,
            "status": status,
            "verdict": text,
            "backend": None if seen.chosen is None else seen.chosen.backend,
            "in_the_way": [each["name"] for each in found if each["state"] == BLOCKS],
            "findings": found,
        },
        indent=2,
    )
