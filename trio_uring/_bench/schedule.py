"""The order of the rounds: all servers up at once, short rounds in random order.

Rules of this file:

- The peers of a workload take turns, in an order that is drawn anew for each turn from the seed, so
  that whatever else the machine does falls on all of them alike.
- A dropped round is made again, up to as many times as the plan allows; then the peer keeps what it
  has.
- A peer that fails has no figures under that workload; the others go on.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from .clocks import allow_open_files
from .processes import RunError
from .rounds import Place, Running, measure, start_servers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .figures import Round
    from .peers import Peer
    from .workloads import Server, Workload

SPARE_FILES = 64  # what a process has open besides its connections
CONNECTIONS_A_ROUND = 2500  # with more of them, rounds are longer: one turn of all takes a while
PACED_SHARE = 0.7  # of the slowest peer's rate: the fixed load of all of them


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds, paced_rounds: of every peer under every workload, at saturation and at a fixed load.
        seconds, warmup: of a round; with thousands of connections a multiple of it.
        seed: of the order.
        again: how many dropped rounds of a peer are made again under one workload, at most.
    """

    rounds: int
    paced_rounds: int
    seconds: float
    warmup: float
    seed: int
    again: int

    def count(self, workload: Workload, peers: Sequence[Peer]) -> int:
        """How many rounds there will be, if none is dropped."""
        able = sum(workload.server.mode in peer.modes for peer in peers)
        return able * (self.rounds + self.paced_rounds * workload.paced)


@dataclass
class Schedule:
    """Makes the rounds, and keeps them.

    Attributes:
        tell: is called with every round.
        rounds: all of them, the dropped ones too.
        failed: by workload and peer, why there are no figures.
        skipped: workloads that this machine does not allow, and why.
    """

    place: Place
    plan: Plan
    tell: Callable[[Round], None]
    rounds: list[Round] = field(default_factory=list)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.plan.seed)

    def run(self, workloads: Sequence[Workload], peers: Sequence[Peer]) -> None:
        """Every workload with every peer that can serve it."""
        by_server: dict[Server, list[Workload]] = {}
        for workload in workloads:
            by_server.setdefault(workload.server, []).append(workload)
        for server, loads in by_server.items():
            able = [peer for peer in peers if server.mode in peer.modes]
            self._run_group(server, loads, able)

    def _run_group(self, server: Server, loads: Sequence[Workload], peers: Sequence[Peer]) -> None:
        possible = [load for load in loads if self._is_possible(load)]
        if not possible:
            return
        with ExitStack() as stack:
            running, failed = start_servers(peers, server, self.place, stack)
            for load in possible:
                self.failed.setdefault(load.name, {}).update(failed)
                self._saturate(load, running)
                if load.paced and self.plan.paced_rounds:
                    self._pace(load, running)

    def _is_possible(self, load: Workload) -> bool:
        if why := load.missing():
            self.skipped[load.name] = why
            return False
        try:
            allow_open_files(load.connections + SPARE_FILES)
        except RunError as error:
            self.skipped[load.name] = str(error)
            return False
        return True

    def _saturate(self, load: Workload, running: Sequence[Running]) -> None:
        self._take_turns(load, running, self.plan.rounds, 0.0)

    def _pace(self, load: Workload, running: Sequence[Running]) -> None:
        """The same at a fixed rate, which every peer can serve."""
        rates: dict[str, list[float]] = {}
        for each in self.rounds:
            if each.workload == load.name and not each.offered:
                rates.setdefault(each.peer, []).append(each.rate)
        if rates:
            slowest = min(median(values) for values in rates.values())
            self._take_turns(load, running, self.plan.paced_rounds, PACED_SHARE * slowest)

    def _take_turns(
        self, load: Workload, running: Sequence[Running], wanted: int, offered: float
    ) -> None:
        good: Counter[str] = Counter()
        for _ in range(wanted + min(wanted, self.plan.again)):
            turn = [
                server
                for server in running
                if good[server.peer.name] < wanted
                and server.peer.name not in self.failed[load.name]
            ]
            self._random.shuffle(turn)
            for server in turn:
                done = self._measure(load, server, offered)
                good[server.peer.name] += done is not None and not done.dropped

    def _measure(self, load: Workload, server: Running, offered: float) -> Round | None:
        long = 1 + load.connections // CONNECTIONS_A_ROUND
        seconds, warmup = long * self.plan.seconds, long * self.plan.warmup
        try:
            done = measure(self.place, server, load, seconds, warmup, offered)
        except RunError as error:
            self.failed[load.name][server.peer.name] = str(error)
            return None
        self.rounds.append(done)
        self.tell(done)
        return done
