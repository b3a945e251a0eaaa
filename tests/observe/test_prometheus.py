"""The collectors: names and units as Prometheus wants them, true values, and scrapes from any
thread.

Rules of this file: what is exported is read back by prometheus-client's own parser. No scrape may
hang.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import trio
from support.streams import unix_streams

import trio_uring
from trio_uring._ring.statistics import Statistics
from trio_uring.metrics import Metrics

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from trio_uring import prometheus  # noqa: E402
from trio_uring.prometheus import DriverCollector, NetworkCollector  # noqa: E402

# Fields of Statistics that are not exported: what can be computed of others.
DERIVED = {"completions_per_enter", "in_flight"}


def registry_of(*collectors: Any) -> Any:
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return registry


def scrape(registry: Any) -> dict[tuple[str, ...], float]:
    """The samples, by name and the values of their labels in alphabetical order."""
    found = {}
    for family in text_string_to_metric_families(
        prometheus_client.generate_latest(registry).decode()
    ):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[label] for label in sorted(sample.labels)))
            assert key not in found
            found[key] = sample.value
    return found


def some_metrics() -> Metrics:
    metrics = Metrics()
    for operation in ("bind", "accept", "dial", "dial"):
        metrics.attempt(operation)
        metrics.success(operation)
    metrics.attempt("send")
    metrics.success("send", None, [b"12345"])
    metrics.attempt("receive")
    metrics.success("receive", None, [b"123"])
    for outcome in ("timed_out", "cancelled", "failed", "failed"):
        metrics.attempt("receive")
        metrics.failure("receive", None, OSError(errno.ECONNRESET, "reset"), outcome)  # type: ignore[arg-type]
    metrics.attempt("receive")
    metrics.failure("receive", None, ValueError("a text that is not exported"))
    metrics.connection_closed("out")
    return metrics


async def talk(count: int = 1) -> None:
    left, right = unix_streams()
    async with left, right:
        for _ in range(count):
            await left.send_all(b"12345")
            assert await right.receive_exactly(5) == b"12345"


# -- names and values


async def test_names_and_units_follow_the_conventions():
    await talk()
    families = [*DriverCollector().collect(), *NetworkCollector(some_metrics()).collect()]
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert re.fullmatch(r"trio_uring_(driver|network)(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"_(milli|micro|kilo|ms|us|kib|mib|ratio|percent)(_|$)", family.name)
        assert ("bytes" in family.name) == (family.unit == "bytes")
        assert family.type in ("counter", "gauge", "info")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert (
                set(sample.labels) <= {"opcode", "operation", "outcome", "error", "direction"}
                or family.type == "info"
            )
            assert math.isfinite(sample.value)
            assert sample.value >= 0


async def test_every_statistic_is_exported():
    await talk()
    fields = {
        field.name: 1000 + number for number, field in enumerate(dataclasses.fields(Statistics))
    }
    counts = {"SEND": trio_uring.OperationCounts(2001, 2002, 2003, 2004, 2005)}
    texts = {
        "operations": counts,
        "backend": "a ring",
        "setup_flags": ("ONE", "TWO"),
        "features": 3,
    }
    collector = DriverCollector()
    collector._driver.statistics = lambda: Statistics(**{**fields, **texts})  # type: ignore[arg-type,method-assign]
    try:
        found = scrape(registry_of(collector))
    finally:
        del collector._driver.statistics
    missing = {name for name, value in fields.items() if value not in found.values()}
    assert missing - set(texts) == DERIVED
    assert set(range(2001, 2006)) <= set(found.values())
    assert found["trio_uring_driver_info", "a ring", "0x3", "ONE,TWO"] == 1


async def test_what_drives_the_run_and_why():
    await talk()
    info = trio_uring.backend_info()
    found = scrape(registry_of(DriverCollector()))
    labels = (info.backend, info.reason or "", info.requested)
    assert found[("trio_uring_driver_backend_info", *labels)] == 1
    assert found["trio_uring_driver_fallback",] == info.fell_back


@pytest.mark.no_ring
@pytest.mark.parametrize(
    ("backend", "requested", "fell_back"),
    [
        ("uring", "auto", 0),
        ("uring", "uring", 0),
        ("readiness", "readiness", 0),
        ("readiness", "off", 0),
        ("readiness", "auto", 1),
    ],
)
def test_a_fallback_is_what_nobody_asked_for(backend: str, requested: str, fell_back: int):
    reason = None if backend == "uring" else "why"
    info = trio_uring.BackendInfo(backend, reason, requested, ())
    metrics = {metric.name: metric.samples for metric in prometheus._backend_metrics(info)}
    [about] = metrics["trio_uring_driver_backend"]
    assert about.labels == {"backend": backend, "requested": requested, "reason": reason or ""}
    assert metrics["trio_uring_driver_fallback"][0].value == fell_back


async def test_values_of_the_driver():
    await talk(3)
    found = scrape(registry_of(DriverCollector()))
    statistics = trio_uring.current_statistics()
    for opcode, counts in statistics.operations.items():
        assert found["trio_uring_driver_submitted_total", opcode] == counts.submitted
        assert found["trio_uring_driver_operations_total", opcode, "completed"] == counts.completed
        assert found["trio_uring_driver_operations_in_flight", opcode] == counts.in_flight
    assert (
        found["trio_uring_driver_bytes_total", "in"]
        == found["trio_uring_driver_bytes_total", "out"]
        == 15
    )
    assert found["trio_uring_driver_enters_total",] == statistics.enters
    assert found["trio_uring_driver_passes_total",] == statistics.passes
    assert found["trio_uring_driver_submission_queue_entries",] == statistics.sq_entries


@pytest.mark.no_ring
def test_values_of_a_network():
    found = scrape(registry_of(NetworkCollector(some_metrics())))
    name = "trio_uring_network_"
    assert (found[name + "connections_total", "in"], found[name + "connections_total", "out"]) == (
        1,
        2,
    )
    assert (found[name + "connections_open", "in"], found[name + "connections_open", "out"]) == (
        1,
        1,
    )
    assert (found[name + "bytes_total", "in"], found[name + "bytes_total", "out"]) == (3, 5)
    assert found[name + "attempts_total", "receive"] == 6
    outcomes = {
        outcome: found[name + "operations_total", "receive", outcome]
        for outcome in ("succeeded", "timed_out")
    }
    assert outcomes == {"succeeded": 1, "timed_out": 1}
    assert found[name + "operations_total", "receive", "cancelled"] == 1
    assert found[name + "operations_total", "receive", "failed"] == 3
    assert found[name + "errors_total", "ECONNRESET", "receive"] == 2
    assert found[name + "errors_total", "ValueError", "receive"] == 1
    assert found[name + "operations_total", "close", "failed"] == 0  # there before it happens


async def test_a_registry_takes_one_of_each():
    registry = registry_of(DriverCollector(), NetworkCollector(Metrics()))
    for collector in (DriverCollector(), NetworkCollector(Metrics())):
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(collector)


# -- threads and runs


def bytes_seen(registry: Any) -> float:
    return scrape(registry)["trio_uring_driver_bytes_total", "in"]


async def test_a_scrape_in_another_thread_sees_the_values_of_now(monkeypatch):
    monkeypatch.setattr(prometheus, "WAIT_SECONDS", 60.0)
    collector = DriverCollector()
    registry, token = registry_of(collector), collector._token

    class Slow:
        """The run's token, of a trio thread that takes a while to answer."""

        def run_sync_soon(self, read: Any, done: Any) -> None:
            token.run_sync_soon(trio.lowlevel.spawn_system_task, self.answer, read, done)

        async def answer(self, read: Any, done: Any) -> None:
            await trio.sleep(0.05)  # not for luck: with any delay, who does not wait sees less
            read(done)

    collector._token = Slow()  # type: ignore[assignment]
    for count in (5, 10):
        await talk()
        assert await trio.to_thread.run_sync(bytes_seen, registry) == count


async def test_registering_never_waits_for_the_trio_thread():
    collector = DriverCollector()
    collector._refresh = None  # type: ignore[assignment,method-assign]
    registry_of(collector)


def scrape_in_a_thread(registry: Any) -> list[float]:
    """Blocks this thread until another has scraped."""
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(bytes_seen(registry)))
    thread.start()
    thread.join()
    return found


async def test_a_scrape_while_the_trio_thread_is_busy_gives_the_last_values(monkeypatch):
    monkeypatch.setattr(prometheus, "WAIT_SECONDS", 0.01)
    registry = registry_of(DriverCollector())
    await talk()
    assert bytes_seen(registry) == 5
    await talk()
    assert scrape_in_a_thread(registry) == [5]
    assert bytes_seen(registry) == 10


async def test_a_failure_to_read_does_not_end_the_run(monkeypatch, caplog):
    await talk()
    registry = registry_of(DriverCollector())

    def fail():
        raise ValueError("unreadable")

    monkeypatch.setattr(trio_uring._driver.run.current_driver(), "statistics", fail)
    assert await trio.to_thread.run_sync(bytes_seen, registry) == 5
    monkeypatch.undo()
    assert "unreadable" in caplog.text


def test_after_the_run_it_gives_the_values_of_its_end():
    async def main():
        registry = registry_of(DriverCollector())
        await talk()
        return registry

    registry = trio.run(main)
    assert bytes_seen(registry) == 5
    assert scrape_in_a_thread(registry) == [5]

    async def later():
        return bytes_seen(registry)

    assert trio.run(later) == 5


def test_another_run_does_not_wait_for_this_one(monkeypatch):
    monkeypatch.setattr(prometheus, "WAIT_SECONDS", math.inf)

    async def main():
        registry = registry_of(DriverCollector())
        await talk()

        async def other():
            return bytes_seen(registry)

        found: list[float] = []
        thread = threading.Thread(target=lambda: found.append(trio.run(other)))
        thread.start()
        thread.join()  # this run cannot answer meanwhile
        assert found == [0]
        await talk()
        assert bytes_seen(registry) == 10

    trio.run(main)


async def test_a_run_that_is_ending_takes_no_questions():
    collector = DriverCollector()

    class Over:
        def run_sync_soon(self, *args: Any) -> None:
            raise trio.RunFinishedError

    collector._token = Over()  # type: ignore[assignment]
    assert await trio.to_thread.run_sync(bytes_seen, registry_of(collector)) == 0


def status_of_forked(registry: Any) -> int:
    """Scrapes in a forked child, and returns how that ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(100)  # for a child that hangs
            os._exit(0 if bytes_seen(registry) == 5 else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1]


async def test_a_forked_child_has_the_last_values_and_asks_nobody(monkeypatch):
    monkeypatch.setattr(prometheus, "WAIT_SECONDS", None)
    registry = registry_of(DriverCollector())
    await talk()
    assert bytes_seen(registry) == 5
    assert status_of_forked(registry) == 0
    assert await trio.to_thread.run_sync(status_of_forked, registry) == 0


@pytest.mark.no_ring
def test_outside_of_trio_there_is_no_driver():
    with pytest.raises(RuntimeError):
        DriverCollector()


# -- the extra


@pytest.mark.no_ring
def test_without_prometheus_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.metrics_core", None)
    monkeypatch.delitem(sys.modules, "trio_uring.prometheus")
    with pytest.raises(ImportError, match=re.escape("pip install 'trio-uring[prometheus]'")):
        importlib.import_module("trio_uring.prometheus")


@pytest.mark.no_ring
def test_the_package_does_not_import_it():
    code = "import trio_uring, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
