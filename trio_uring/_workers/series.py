"""The series of a worker's metrics, as data that can cross a socket, and the page of all workers.

In a worker: those of prometheus-client's default registry, where programs have theirs, and those of
the run's driver. In the supervisor: all of them in one page, each with the label `worker`.

Rules of this file: prometheus-client does the reading and the writing. It is imported only where
metrics are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..prometheus import DriverCollector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# [name, documentation, type, unit, [[name of the sample, labels, value], ...]]
Family = list[Any]
LABEL = "worker"
_THEIR_LABEL = "exported_worker"  # what Prometheus makes of a label that is taken


class Series:
    """Reads this process's metrics. Make it in the trio run."""

    def __init__(self) -> None:
        self._driver = DriverCollector()

    def read(self) -> list[Family]:
        """The families, without timestamps and exemplars. It may be called in any thread."""
        families = list(REGISTRY.collect())
        names = {family.name for family in families}
        # the program may have registered a DriverCollector of its own
        families += [each for each in self._driver.collect() if each.name not in names]
        return [
            [
                family.name,
                family.documentation,
                family.type,
                family.unit,
                # What a collector gives may be of numpy, or a Decimal: it only has to be a number.
                [[sample.name, sample.labels, float(sample.value)] for sample in family.samples],
            ]
            for family in families
        ]


class Page(Collector):
    """The page of one scrape (a prometheus_client collector).

    Args:
        answers: for each worker its families; None: it did not answer.
        restarts: for each worker how often it was started again after it had ended by itself.
    """

    def __init__(
        self, answers: Mapping[int, Sequence[Family] | None], restarts: Mapping[int, int]
    ) -> None:
        self._answers = answers
        self._restarts = restarts

    def collect(self) -> Iterable[Metric]:
        """The supervisor's own families, then those of the workers, each family once."""
        up = GaugeMetricFamily(
            "trio_uring_worker_up",
            "1: this worker's trio thread answered, and its series are here.",
            labels=[LABEL],
        )
        restarts = CounterMetricFamily(
            "trio_uring_worker_restarts",
            "Times that this worker ended without being asked to, and was started again.",
            labels=[LABEL],
        )
        for number, answer in self._answers.items():
            up.add_metric([str(number)], answer is not None)
            restarts.add_metric([str(number)], self._restarts[number])
        return [up, restarts, *self._merged({up.name, restarts.name})]

    def _merged(self, taken: set[str]) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, answer in self._answers.items():
            for name, documentation, kind, unit, samples in answer or ():
                if name in taken:
                    continue
                if name not in families:
                    families[name] = Metric(name, documentation, kind, unit)
                for sample, labels, value in samples:
                    families[name].add_sample(sample, _labelled(labels, number), value)
        return families.values()

    def text(self) -> bytes:
        """The page as Prometheus reads it."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)


def _labelled(labels: dict[str, str], number: int) -> dict[str, str]:
    theirs = {_THEIR_LABEL if name == LABEL else name: value for name, value in labels.items()}
    return {LABEL: str(number), **theirs}
