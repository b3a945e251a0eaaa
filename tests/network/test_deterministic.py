"""The same seed gives the same run: of the scheduler, and of the simulated network.

Rules of this file: those of support/simulated.py.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import trio
import trio.testing
from support.simulated import (
    elapsed,
    pair_of,
)

from trio_uring import _trio
from trio_uring._network.simulated import SimulatedNetwork, run_deterministically

pytestmark = pytest.mark.no_ring


# -- the deterministic run


def schedule(seed: int) -> tuple[list[int], float]:
    order = []

    async def worker(number: int) -> None:
        for _ in range(4):
            order.append(number)
            await trio.lowlevel.checkpoint()

    async def main() -> float:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(worker, number)
        await trio.sleep(3600)
        return trio.current_time()

    return order, run_deterministically(main, seed=seed)


def test_the_schedule_is_the_seeds():
    runs = [schedule(seed) for seed in (1, 1, 1, 2)]
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0] != runs[3][0]
    assert runs[0][1] == 3600


def test_trio_has_the_names_that_are_used():
    assert trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING in (False, True)
    assert isinstance(trio._core._run._r, random.Random)


@pytest.mark.parametrize("before", [False, True])
def test_trio_is_as_it_was_afterwards(before, monkeypatch):
    private = trio._core._run
    monkeypatch.setattr(private, "_ALLOW_DETERMINISTIC_SCHEDULING", before)
    state = private._r.getstate()

    async def main(fail: bool) -> str:
        assert private._ALLOW_DETERMINISTIC_SCHEDULING
        await trio.lowlevel.checkpoint()
        if fail:
            raise KeyError
        return "result"

    assert run_deterministically(main, False) == "result"
    with pytest.raises(KeyError):
        run_deterministically(main, True)
    assert private._ALLOW_DETERMINISTIC_SCHEDULING is before
    assert private._r.getstate() == state


def test_a_trio_without_those_names_is_refused(monkeypatch):
    names = [
        name._replace(found=name.found and not name.name.endswith("._r")) for name in _trio.NAMES
    ]
    monkeypatch.setattr(_trio, "NAMES", names)
    with pytest.raises(RuntimeError, match="does not know how"):
        run_deterministically(trio.sleep, 0)


def test_instruments_are_passed_on():
    class Count(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps += 1

    count = Count()
    run_deterministically(trio.sleep, 1, instruments=[count])
    assert count.steps


async def test_it_works_on_a_real_clock_too():
    first, second = await pair_of(SimulatedNetwork(latency=0.001))
    await first.send_all(b"x")
    assert await second.receive_some() == b"x"


# -- the same run for a seed


def trace_of(seed: int, schedule: int = 0) -> list[tuple[Any, ...]]:
    """What happened, and when, in a small program with several connections."""
    trace: list[tuple[Any, ...]] = []

    async def serve(stream: Any) -> None:
        async for chunk in stream:
            trace.append((trio.current_time(), "served", stream.remote_address, chunk))
            await stream.send_all(chunk.upper())
        await stream.aclose()

    async def client(network: SimulatedNetwork, name: str, address: Any) -> None:
        stream = await network.host(name).dial(address)
        trace.append((trio.current_time(), "dialled", stream.local_address))
        for _ in range(5):
            await stream.send_all(name.encode() * 20)
        await stream.send_eof()
        async for chunk in stream:
            trace.append((trio.current_time(), "answered", name, chunk))

    async def main() -> None:
        network = SimulatedNetwork(seed, latency=(0.01, 0.5), bandwidth=1000, buffer_size=512)
        async with trio.open_nursery() as nursery, await network.bind(("server", 80)) as listener:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            async with trio.open_nursery() as clients:
                for name in ("one", "two", "three"):
                    clients.start_soon(client, network, name, ("server", 80))
            nursery.cancel_scope.cancel()

    run_deterministically(main, seed=schedule)
    return trace


def test_the_same_seed_is_the_same_run():
    traces = [trace_of(seed) for seed in (1, 1, 1, 2, 3)]
    assert traces[0] == traces[1] == traces[2]
    assert len(traces[0]) > 30
    for one, other in itertools.combinations(traces[2:], 2):
        assert one != other


def test_a_connection_does_not_depend_on_the_others():
    """The same bytes on connection 0 arrive in the same parts at the same times, with or without a
    second connection."""

    def parts(*, disturbed: bool) -> list[tuple[float, bytes]]:
        async def main() -> list[tuple[float, bytes]]:
            network = SimulatedNetwork(7, latency=(0.1, 1.0), short=0.9)
            first, second = await pair_of(network)
            start = elapsed()
            if disturbed:
                other, _ = await pair_of(network)
                await other.send_all(bytes(1000))
                start = elapsed()
            await first.send_all(bytes(20000))
            await first.send_eof()
            return [(round(elapsed() - start, 9), chunk) async for chunk in second]

        return run_deterministically(main)

    assert parts(disturbed=False) == parts(disturbed=True)
    assert len(parts(disturbed=True)) > 1
