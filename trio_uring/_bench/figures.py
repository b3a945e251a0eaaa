"""From rounds to figures: what one round gave, and what is concluded from many.

Rules of this file: nothing runs here. A dropped round is kept and counted, but no figure is made of
it, unless every round of a peer was dropped: then its figures are made of all and say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Figures = dict[str, float]
Results = dict[str, dict[str, Figures]]  # by workload, then by peer


@dataclass(frozen=True)
class Round:
    """What one round of one peer gave.

    Attributes:
        workload, peer: what was measured.
        offered: operations a second at a fixed load; 0 at saturation.
        rate: operations a second.
        cpu_us: CPU time of the server for an operation, in microseconds.
        p50_us, p99_us: latency, in microseconds; 0 where there is none.
        load_share: how much of its core the load generator used.
        strays: threads of the server that may run on other cores.
        dropped: why it does not count; empty if it does.
    """

    workload: str
    peer: str
    offered: float
    rate: float
    cpu_us: float
    p50_us: float
    p99_us: float
    load_share: float
    strays: int = 0
    dropped: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of all of them (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _usable(rounds: Sequence[Round]) -> Sequence[Round]:
    return [each for each in rounds if not each.dropped] or rounds


def conclude(rounds: Sequence[Round]) -> Figures:
    """The figures of one peer under one workload, from its rounds of both kinds."""
    saturated = [each for each in rounds if not each.offered]
    paced = [each for each in rounds if each.offered]
    found = {
        "rounds": float(sum(not each.dropped for each in rounds)),
        "dropped": float(sum(bool(each.dropped) for each in rounds)),
    }
    if saturated:
        used = _usable(saturated)
        cpu = [each.cpu_us for each in used]
        found |= {
            "cpu_us_min": min(cpu),
            "cpu_us_p20": percentile(cpu, 0.2),
            "cpu_us_median": median(cpu),
            "rate": median(each.rate for each in used),
            "load_share": median(each.load_share for each in used),
            "strays": float(max(each.strays for each in used)),
        }
        if any(each.p99_us for each in used):
            found["p50_us"] = median(each.p50_us for each in used)
            found["p99_us"] = median(each.p99_us for each in used)
    if paced:
        used = _usable(paced)
        found |= {
            "offered": median(each.offered for each in used),
            "paced_rate": median(each.rate for each in used),
            "paced_cpu_us": min(each.cpu_us for each in used),
            "paced_p50_us": median(each.p50_us for each in used),
            "paced_p99_us": median(each.p99_us for each in used),
        }
    return found


def conclude_all(rounds: Sequence[Round]) -> Results:
    """The figures of every peer under every workload, in the order of the first rounds."""
    grouped: dict[str, dict[str, list[Round]]] = {}
    for each in rounds:
        grouped.setdefault(each.workload, {}).setdefault(each.peer, []).append(each)
    return {
        workload: {peer: conclude(theirs) for peer, theirs in peers.items()}
        for workload, peers in grouped.items()
    }
