"""The metrics of all gateway processes as one exposition.

Workers keep their figures in files of prometheus_client's multiprocess mode, which outlive them: a worker that is
killed takes none along. The parent's own are added: those of the queue and the engines, which only it has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
# Gauges of which the smallest counts, not the sum.
SMALLEST = frozenset(("lensmith_shared_limits_up", "process_start_time_seconds", "process_max_fds"))


def make_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="lensmith-metrics-"))


def forget_gauges(directory: Path, pid: int) -> None:
    """A worker is gone: its gauges are no more, its counters and histograms stay."""
    mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]


def worker_metrics(directory: str) -> list[Metric]:
    """What all workers, those that are gone included, have written."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return list(registry.collect())


def exposition(metrics: Iterable[Metric]) -> bytes:
    """The sums of samples with the same name and labels, in the text format of Prometheus, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Sums(metrics))
    return generate_latest(registry)


class _Sums(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._families: dict[str, Metric] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for metric in metrics:
            self._families.setdefault(metric.name, metric)
            values = self._values.setdefault(metric.name, {})
            for sample in metric.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                known = values.get(key)
                if known is None:
                    values[key] = sample.value
                else:
                    values[key] = min(known, sample.value) if sample.name in SMALLEST else known + sample.value

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            merged = Metric(name, family.documentation, family.type)
            for (sample, labels), value in self._values[name].items():
                merged.add_sample(sample, dict(labels), value)
            yield merged


def process_metrics() -> list[Metric]:
    """Memory, CPU time and file descriptors of this process."""
    return list(ProcessCollector(registry=None).collect())
