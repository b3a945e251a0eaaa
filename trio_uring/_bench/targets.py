"""The figures to reach: the one place where limits are.

Rules of this file: a limit is of a ratio, and less is better. Ratios of CPU time are of minima of
the same run. What was not measured, or in disturbed rounds
only, is neither reached nor missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .workloads import FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .figures import Results

CPU = "cpu_us_min"


@dataclass(frozen=True)
class Target:
    """A limit, and where its figure comes from.

    Attributes:
        name: what is compared with what.
        limit: what the ratio must not exceed.
        figure: the ratio of some results; a KeyError means that it was not measured.
    """

    name: str
    limit: float
    figure: Callable[[Results], float]


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; `measured` is None where it was not, or not in quiet."""

    target: Target
    measured: float | None
    why_not: str = "not measured"

    @property
    def outcome(self) -> str:
        if self.measured is None:
            return self.why_not
        return "reached" if self.measured <= self.target.limit else "missed"


class DisturbedError(KeyError):
    """Every round was disturbed."""


def _cpu(results: Results, workload: str, peer: str) -> float:
    figures = results[workload][peer]
    if figures.get("rounds") == 0:
        raise DisturbedError
    return figures[CPU]


def _against(workload: str, peer: str, baseline: str, limit: float) -> Target:
    def figure(results: Results) -> float:
        return _cpu(results, workload, peer) / _cpu(results, workload, baseline)

    return Target(f"{workload}: {peer} / {baseline}", limit, figure)


def _added_by_scopes(results: Results) -> float:
    added = {
        peer: _cpu(results, "scopes-50x1K", peer) - _cpu(results, "50x1K", peer)
        for peer in ("ring", "trio")
    }
    if added["trio"] <= 0:
        raise DisturbedError  # scopes do not make anything cheaper
    return added["ring"] / added["trio"]


def _memory(results: Results) -> float:
    idle = results["idle-10000"]
    return idle["ring"]["memory_bytes"] / idle["trio"]["memory_bytes"]


def _active(results: Results) -> float:
    ring = results["idle-10000"]["ring"]
    return ring["active_us"] / ring["alone_us"]


_ECHOES = {  # against trio, uvloop's streams, and C
    "1x1K": (0.60, 1.20, None),
    "50x1K": (0.42, 0.80, 1.50),
    "500x1K": (0.42, 0.75, 1.60),
    "5000x1K": (0.45, 0.80, None),
    "16x64K": (0.70, 0.72, 1.40),
    "1x1M": (0.60, 0.40, 1.50),
}
TARGETS = (
    *(
        _against(workload, "ring", baseline, limit)
        for workload, limits in _ECHOES.items()
        for baseline, limit in zip(("trio", "uvloop", "c"), limits)
        if limit is not None
    ),
    *(
        _against(workload, "readiness", baseline, limit)
        for workload in ("50x1K", "500x1K")
        for baseline, limit in (("trio", 0.55), ("uvloop", 1.00))
    ),
    _against("50x1K", "python", "trio", 0.72),
    Target("50x1K: what a timeout scope adds, ring / trio", 1.15, _added_by_scopes),
    Target("memory of an idle connection, ring / trio", 1.00, _memory),
    Target("one active among 10,000 idle, ring / the same alone", 1.10, _active),
    *(_against(workload, "ring", "trio", 0.60) for workload in FRAMES),
    _against("relay-50x1K", "ring", "trio", 0.45),
    _against("relay-bulk-1x256K", "ring", "trio", 0.25),
    _against("send-file-1x16M", "ring", "trio", 0.40),
    _against("udp-50x64", "ring", "trio", 1.00),
    _against("udp-50x1400", "ring", "trio", 1.00),
    _against("websockets-64x100", "ring", "trio", 0.65),
    _against("hypercorn-64x5", "ring", "trio", 0.85),
)


def judge(results: Results) -> list[Verdict]:
    """Every target, with what these results say of it."""
    verdicts = []
    for target in TARGETS:
        try:
            verdicts.append(Verdict(target, target.figure(results)))
        except DisturbedError:
            verdicts.append(Verdict(target, None, "disturbed"))
        except (KeyError, ZeroDivisionError):
            verdicts.append(Verdict(target, None))
    return verdicts
