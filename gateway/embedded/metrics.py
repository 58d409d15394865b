"""What the embedded engine reports on /metrics. A request with n=2 is two choices."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class EmbeddedMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "lensmith_engine_"
        self.batch_size = Histogram(
            name + "batch_size",
            "Choices that one call of generate began with.",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128),
            registry=self.registry,
        )
        self.running = Gauge(name + "choices_running", "Choices being generated.", registry=self.registry)
        self.waiting = Gauge(name + "choices_waiting", "Choices waiting for a batch.", registry=self.registry)
        self.finished = Counter(
            name + "choices_finished", "Choices that ended, by reason.", ["reason"], registry=self.registry
        )
        for reason in ("stop", "length", "abort", "error"):
            self.finished.labels(reason)
        self.prompt_tokens = Counter(
            name + "prompt_tokens",
            "Prompt tokens of the choices that began, padding not counted.",
            registry=self.registry,
        )
        self.generation_tokens = Counter(name + "generation_tokens", "Tokens generated.", registry=self.registry)
        self.images = Counter(name + "images", "Images of the choices that began.", registry=self.registry)
