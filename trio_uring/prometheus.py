"""Collectors for prometheus-client: for a trio run's ring and driver, and for a network's Metrics.

    registry.register(DriverCollector())  # in the trio run
    registry.register(NetworkCollector(network.metrics))
    prometheus_client.start_http_server(9100, registry=registry)

It needs the extra: pip install 'trio-uring[prometheus]'. A registry takes one collector of each
class, so give each trio run (each thread that has one) a separate registry.

Rules of this file: names begin with trio_uring_, units are base units, counters end in _total.
Numbers are read, not computed: rates and ratios are for the query. Collecting may be done in any
thread, at any time, and never takes long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Final

import trio

from ._driver.run import current_driver

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )
except ImportError as _missing:
    raise ImportError(
        "trio_uring.prometheus needs prometheus-client: pip install 'trio-uring[prometheus]'"
    ) from _missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from ._driver.backend import BackendInfo
    from ._ring.statistics import Statistics
    from .metrics import Metrics, MetricsSnapshot

_log = logging.getLogger("trio_uring")

# How long to wait for a busy trio thread. After that, a scrape gets old values rather than failing.
WAIT_SECONDS: Final = 1.0

# For each metric: its name after "trio_uring_driver_", the attribute of Statistics, and the help.
_DRIVER_COUNTERS = (
    ("direct", "direct", "Operations done by a system call of their own."),
    ("enters", "enters", "Calls of io_uring_enter."),
    ("passes", "passes", "Passes of trio's scheduler."),
    ("completions", "completions", "Completions that the kernel gave."),
    (
        "submission_queue_full",
        "sq_full",
        "Times that the submission queue was flushed because it was full.",
    ),
    (
        "completion_queue_overflows",
        "cq_overflows",
        "Times that the kernel held completions back; none is lost.",
    ),
    (
        "short_writes",
        "short_writes",
        "Sends that the kernel did only in part; the stream sent the rest.",
    ),
    ("datagrams_sent", "datagrams_sent", "Datagrams that UDPSocket sent."),
    ("datagrams_received", "datagrams_received", "Datagrams that UDPSocket received."),
    (
        "buffers_exhausted",
        "buffers_exhausted",
        "Receives that found no provided buffer free, and were made again.",
    ),
)
_DRIVER_GAUGES = (
    ("operations_queued", "queued", "Operations that wait for the end of this scheduler pass."),
    ("operations_pinned", "pinned", "Operations that hold a caller's buffers."),
    ("submission_queue_entries", "sq_entries", "Size of the submission queue."),
    ("completion_queue_entries", "cq_entries", "Size of the completion queue."),
)


class DriverCollector:
    """Exports the statistics of this trio run's driver (trio_uring.current_statistics).

    Make it in the run. It may be collected in any thread; after the run it exports the final
    values. If the trio thread is busy for more than a second, or if another trio run collects it,
    it exports the values that it last read.

    Raises:
        RuntimeError: outside of trio.
        RingUnavailableError: io_uring is asked for and not available: see
            trio_uring.backend_info().
    """

    def __init__(self) -> None:
        self._driver = current_driver()
        self._token, self._pid = trio.lowlevel.current_trio_token(), os.getpid()
        self._last = self._driver.statistics()
        with contextlib.suppress(RuntimeError):  # the run is ending: these are its last values
            trio.lowlevel.spawn_system_task(
                self._read_at_the_end, name="trio_uring prometheus collector"
            )

    def describe(self) -> list[Metric]:
        """The metrics with old values, so that registering never waits for the trio thread."""
        return [*_backend_metrics(self._driver.backend), *_driver_metrics(self._last)]

    def collect(self) -> list[Metric]:
        """The metrics as they are now (prometheus_client.registry.Collector)."""
        self._refresh()
        return self.describe()

    def _refresh(self) -> None:
        in_a_run = trio.lowlevel.in_trio_run()
        if in_a_run and trio.lowlevel.current_trio_token() is self._token:
            self._read()
        elif not self._driver.engine.phase.over and self._pid == os.getpid():
            # (In a forked child nobody would answer.)
            done = threading.Event()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._read_for, done)
                # Another run must not wait: its thread has its own tasks, and two runs could wait
                # for each other.
                done.wait(0 if in_a_run else WAIT_SECONDS)

    def _read(self) -> None:
        if not self._driver.engine.phase.over:
            self._last = self._driver.statistics()

    def _read_for(self, done: threading.Event) -> None:
        try:
            self._read()
        except Exception:  # raised here, it would crash the whole run
            _log.exception("the driver's statistics could not be read")
        finally:
            done.set()

    async def _read_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._read()


class NetworkCollector:
    """Exports the Metrics of a network or a stream. It may be collected in any thread.

    Args:
        metrics: those of a Metered or a MeteredStream; several of these may share one.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        """The same as collect."""
        return self.collect()

    def collect(self) -> list[Metric]:
        """The metrics as they are now (prometheus_client.registry.Collector)."""
        return list(_network_metrics(self._metrics.snapshot()))


def _backend_metrics(info: BackendInfo) -> Iterator[Metric]:
    about = {"backend": info.backend, "requested": info.requested, "reason": info.reason or ""}
    text = "What drives this trio run, what was asked for, and why it is not io_uring."
    yield InfoMetricFamily("trio_uring_driver_backend", text, about)
    text = "1: this trio run waits by readiness, and nobody asked for that."
    yield GaugeMetricFamily("trio_uring_driver_fallback", text, info.fell_back)


def _driver_metrics(statistics: Statistics) -> Iterator[Metric]:
    about = {
        "backend": statistics.backend,
        "setup_flags": ",".join(statistics.setup_flags),
        "features": f"{statistics.features:#x}",
    }
    yield InfoMetricFamily("trio_uring_driver", "The ring of this trio run.", about)
    yield from _opcode_metrics(statistics)
    moved = {"in": statistics.bytes_received, "out": statistics.bytes_sent}
    yield _by_direction(
        "trio_uring_driver_bytes", "Bytes that the kernel moved.", moved, unit="bytes"
    )
    for name, attribute, text in _DRIVER_COUNTERS:
        yield CounterMetricFamily(f"trio_uring_driver_{name}", text, getattr(statistics, attribute))
    for name, attribute, text in _DRIVER_GAUGES:
        yield GaugeMetricFamily(f"trio_uring_driver_{name}", text, getattr(statistics, attribute))


def _opcode_metrics(statistics: Statistics) -> Iterator[Metric]:
    labels = ["opcode"]
    submitted = CounterMetricFamily(
        "trio_uring_driver_submitted", "Operations given to the kernel.", labels=labels
    )
    ended = CounterMetricFamily(
        "trio_uring_driver_operations", "Operations that ended.", labels=[*labels, "outcome"]
    )
    flying = GaugeMetricFamily(
        "trio_uring_driver_operations_in_flight", "Operations that the kernel holds.", labels=labels
    )
    for opcode, counts in statistics.operations.items():
        submitted.add_metric([opcode], counts.submitted)
        ended.add_metric([opcode, "completed"], counts.completed)
        ended.add_metric([opcode, "cancelled"], counts.cancelled)
        ended.add_metric([opcode, "failed"], counts.failed)
        flying.add_metric([opcode], counts.in_flight)
    yield from (submitted, ended, flying)


def _network_metrics(counts: MetricsSnapshot) -> Iterator[Metric]:
    made = {"in": counts.connections_in, "out": counts.connections_out}
    yield _by_direction(
        "trio_uring_network_connections", "Connections accepted (in) and dialed (out).", made
    )
    open_ones = GaugeMetricFamily(
        "trio_uring_network_connections_open", "Connections not closed yet.", labels=["direction"]
    )
    open_ones.add_metric(["in"], counts.open_in)
    open_ones.add_metric(["out"], counts.open_out)
    yield open_ones
    moved = {"in": counts.bytes_in, "out": counts.bytes_out}
    yield _by_direction(
        "trio_uring_network_bytes",
        "Bytes of receives and sends that succeeded.",
        moved,
        unit="bytes",
    )

    labels = ["operation"]
    attempts = CounterMetricFamily(
        "trio_uring_network_attempts", "Operations begun.", labels=labels
    )
    ended = CounterMetricFamily(
        "trio_uring_network_operations", "Operations that ended.", labels=[*labels, "outcome"]
    )
    errors = CounterMetricFamily(
        "trio_uring_network_errors", "Operations that failed.", labels=[*labels, "error"]
    )
    for operation, attempted in counts.operations.items():
        attempts.add_metric([operation], attempted)
        ended.add_metric([operation, "succeeded"], counts.successes[operation])
        ended.add_metric([operation, "timed_out"], counts.timeouts[operation])
        ended.add_metric([operation, "cancelled"], counts.cancelled[operation])
        failed = sum(count for (name, _), count in counts.errors.items() if name == operation)
        ended.add_metric([operation, "failed"], failed)
    for (operation, kind), count in counts.errors.items():
        errors.add_metric([operation, kind], count)
    yield from (attempts, ended, errors)


def _by_direction(name: str, text: str, values: Mapping[str, int], unit: str = "") -> Metric:
    family = CounterMetricFamily(name, text, labels=["direction"], unit=unit)
    for direction, value in values.items():
        family.add_metric([direction], value)
    return family
