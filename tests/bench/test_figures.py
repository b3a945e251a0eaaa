"""From rounds to figures: percentiles, the rule by which a round is dropped, what is concluded.

Rules of this file: nothing runs; times are made up.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from trio_uring._bench import schedule
from trio_uring._bench.build import Programs
from trio_uring._bench.clocks import Cores, CpuClock, Work, idle_seconds, why_disturbed
from trio_uring._bench.figures import Round, conclude, conclude_all, percentile
from trio_uring._bench.peers import PEERS
from trio_uring._bench.processes import RunError
from trio_uring._bench.rounds import Place
from trio_uring._bench.schedule import Plan, Schedule
from trio_uring._bench.workloads import parse

pytestmark = pytest.mark.no_ring

ROUND = Round("50x1K", "trio", 0.0, 1000.0, 20.0, 100.0, 200.0, 0.5)
QUIET = Work(wall=1.0, busy=1.5, ours=1.48, waited=0.0, cores=2)
PLAN = Plan(rounds=2, paced_rounds=1, seconds=0.1, warmup=0.0, seed=7, again=2)
PLACE = Place(Programs(Path("loadgen"), Path("floor")), Cores(0, 1))


def test_percentiles() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, 0.2) == 1.0
    assert percentile(values, 0.21) == 2.0
    assert percentile(values, 0.5) == 3.0
    assert percentile(values, 1.0) == 5.0
    assert percentile([7.0], 0.2) == 7.0


def test_the_rule_by_which_a_round_is_dropped() -> None:
    assert why_disturbed(QUIET) == ""
    assert why_disturbed(replace(QUIET, busy=1.57)) == ""  # what the kernel's ticks cannot tell
    assert "other work" in why_disturbed(replace(QUIET, busy=1.7))
    assert "waited for its core" in why_disturbed(replace(QUIET, waited=0.06))
    assert why_disturbed(replace(QUIET, waited=0.04)) == ""


def test_idle_time_is_that_of_the_cores_that_are_used(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 1 1 1 900 90 0 0 0\ncpu0 1 1 1 100 10 0 0 0\ncpu1 1 1 1 800 80 0 0 0\n")
    assert idle_seconds({0}, stat) == pytest.approx(1.1)
    assert idle_seconds({0, 1}, stat) == pytest.approx(9.9)


def test_figures_are_made_of_the_rounds_that_count() -> None:
    rounds = [replace(ROUND, cpu_us=float(cpu)) for cpu in (23, 21, 25, 22, 24)]
    dropped = replace(ROUND, cpu_us=1.0, dropped="other work")
    paced = replace(ROUND, offered=500.0, p99_us=90.0, cpu_us=30.0)
    found = conclude([*rounds, dropped, paced])
    assert (found["cpu_us_min"], found["cpu_us_p20"], found["cpu_us_median"]) == (21, 21, 23)
    assert (found["rounds"], found["dropped"]) == (6, 1)
    assert (found["paced_p99_us"], found["paced_cpu_us"], found["offered"]) == (90, 30, 500)


def test_where_every_round_was_dropped_all_are_used() -> None:
    found = conclude([replace(ROUND, dropped="other work")])
    assert (found["rounds"], found["cpu_us_min"]) == (0, 20)


def test_rounds_are_grouped_by_workload_and_peer() -> None:
    found = conclude_all([ROUND, replace(ROUND, peer="ring"), replace(ROUND, workload="1x1K")])
    assert {name: list(peers) for name, peers in found.items()} == {
        "50x1K": ["trio", "ring"],
        "1x1K": ["trio"],
    }


# -- the order of the rounds


class Fake:
    """In place of servers and of `measure`.

    Attributes:
        order: whose turn it was, and the load that was offered.
        dropped: how many of the first rounds of a peer are dropped.
        broken: peers that serve nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[tuple[str, float]] = []
        self.dropped: dict[str, int] = {}
        self.broken: set[str] = set()
        monkeypatch.setattr(schedule, "measure", self.measure)
        monkeypatch.setattr(schedule, "start_servers", self.start)

    def start(self, peers, server, place, stack):
        class Running:
            def __init__(self, peer):
                self.peer = peer

        return [Running(peer) for peer in peers], {}

    def measure(self, place, server, load, seconds, warmup, offered):
        name = server.peer.name
        self.order.append((name, offered))
        self.seconds = seconds
        if name in self.broken:
            raise RunError("it serves nothing")
        drop = self.dropped.get(name, 0) > 0
        self.dropped[name] = self.dropped.get(name, 0) - 1
        rate = {"trio": 1000.0, "c": 4000.0}[name]
        return replace(ROUND, peer=name, rate=rate, offered=offered, dropped="noise" * drop)

    def run(self, plan: Plan = PLAN, workload: str = "50x1K") -> Schedule:
        told: list[Round] = []
        made = Schedule(PLACE, plan, told.append)
        made.run([parse(workload)], [PEERS["trio"], PEERS["c"]])
        assert told == made.rounds
        return made


def test_every_peer_has_its_rounds_and_the_same_fixed_load(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.run()
    assert sorted(fake.order) == [
        ("c", 0.0), ("c", 0.0), ("c", 700.0), ("trio", 0.0), ("trio", 0.0), ("trio", 700.0),
    ]  # fmt: skip


def test_rounds_of_thousands_of_connections_are_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.run(workload="50x1K")
    short = fake.seconds
    fake.run(workload="5000x1K")
    assert fake.seconds == pytest.approx(3 * short)


def test_a_dropped_round_is_made_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.dropped = {"c": 1, "trio": 99}
    made = fake.run(replace(PLAN, paced_rounds=0))
    assert [name for name, _ in fake.order].count("c") == 3
    assert [name for name, _ in fake.order].count("trio") == 4
    assert not made.failed["50x1K"]


def test_the_seed_gives_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed in (1, 1, 2):
        fake = Fake(monkeypatch)
        fake.run(replace(PLAN, rounds=20, seed=seed))
        orders.append(fake.order)
    assert orders[0] == orders[1] != orders[2]


def test_a_peer_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.broken = {"c"}
    made = fake.run()
    assert made.failed == {"50x1K": {"c": "it serves nothing"}}
    assert [name for name, _ in fake.order].count("c") == 1
    assert [name for name, _ in fake.order].count("trio") == 3


def test_a_peer_takes_no_part_in_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    fake.run(workload="scopes-50x1K")
    assert {name for name, _ in fake.order} == {"trio"}


def test_a_workload_that_needs_what_is_not_installed_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fake = Fake(monkeypatch)
    made = fake.run(workload="hypercorn-2x5")
    assert made.skipped == {"hypercorn-2x5": "hypercorn.trio is not installed"}
    assert not fake.order


def test_a_workload_that_needs_too_many_files_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: int) -> None:
        raise RunError(f"{wanted} open files are needed")

    monkeypatch.setattr(schedule, "allow_open_files", refuse)
    fake = Fake(monkeypatch)
    made = fake.run()
    assert made.skipped == {"50x1K": "114 open files are needed"}
    assert not fake.order


def test_a_kernel_that_does_not_count_waiting_is_one_sentence(tmp_path: Path) -> None:
    clock = CpuClock(os.getpid())
    assert clock.sample().wait_seconds >= 0
    clock._schedstat = tmp_path / "schedstat"
    with pytest.raises(RunError, match="schedstat cannot be read: No such file or directory"):
        clock.sample()
