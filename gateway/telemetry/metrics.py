"""The gateway's own Prometheus metrics, measured where the user feels them. Seconds, bytes, pixels, tokens: base units.

Label values come from the configuration and from our own code, so a client cannot grow them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

# A series more for every series, which says when this process started.
disable_created_metrics()  # type: ignore[no-untyped-call]

# vLLM's buckets, up to 160 s: a small GPU takes 10 s and more for one image.
SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 40.0)
BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
IMAGES = (0, 1, 2, 3, 4, 6, 8, 12, 16)
PIXELS = (4_096, 65_536, 262_144, 589_824, 1_048_576, 2_097_152, 4_194_304, 12_582_912, 50_331_648)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

# Labels that are known before anything has happened: a counter that first appears at 1 never shows as an increase.
STATUSES = ("200", "400", "401", "404", "413", "429", "499", "500", "502", "503", "504")
OUTCOMES = ("ok", "aborted", "engine_error", "engine_refused", "engine_timeout", "engine_unavailable")
REASONS = (
    *("invalid_api_key", "invalid_json", "invalid_type", "invalid_value", "missing_required_parameter"),
    *(
        "unsupported_parameter",
        "model_not_found",
        "model_not_allowed",
        "request_too_large",
        "concurrency_limit",
        "rate_limit_exceeded",
    ),
    *("queue_full", "queue_timeout", "bytes_in_flight", "shutdown", "client_gone", "request_timeout", "internal_error"),
    *("engine_error", "engine_refused", "engine_timeout", "engine_unavailable"),
)

Labelled = TypeVar("Labelled", Counter, Histogram)

# What a gauge of several gateway processes is (prometheus_client's `multiprocess_mode`).
OfWorkers = Literal["livesum", "livemax", "livemin", "livemostrecent"]

LAG_PERIOD = 0.25  # seconds between two measurements of the event loop's lag


class QuickHistogram(Histogram):
    """prometheus_client's, without exemplars and without a look at the labels: eight observations a request add up."""

    def observe(self, amount: float, exemplar: object = None) -> None:
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
        self._sum.inc(amount)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, file descriptors: process_*
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Any] = {}

        self.described: list[tuple[str, str, tuple[str, ...], str]] = []  # name, kind, labels, help

        def counter(name: str, help: str, *labels: str) -> Counter:
            self.described.append((name, "counter", labels, help))
            return Counter(name, help, labels, registry=self.registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            self.described.append((name, "histogram", labels, help))
            return QuickHistogram(name, help, labels, buckets=buckets, registry=self.registry)

        def gauge(name: str, help: str, *labels: str, of_workers: OfWorkers = "livesum") -> Gauge:
            self.described.append((name, "gauge", labels, help))
            return Gauge(name, help, labels, registry=self.registry, multiprocess_mode=of_workers)

        self.requests = counter("lensmith_requests_total", "Requests answered.", "model", "status")
        self.rejections = counter("lensmith_rejections_total", "Requests answered with an error, by reason.", "reason")
        self.request_seconds = histogram(
            "lensmith_request_seconds", "From a request's head to the answer's last byte.", SECONDS, "model"
        )
        receive_seconds = histogram(
            "lensmith_request_receive_seconds", "From a request's head to its body's last byte.", SECONDS
        )
        self.queue_seconds = histogram(
            "lensmith_request_queue_seconds", "From a request's check to its place at the engine.", SECONDS
        )
        self.first_token_seconds = histogram(
            "lensmith_time_to_first_token_seconds", "From a request's head to a stream's first event.", SECONDS, "model"
        )
        self.gap_seconds = histogram(
            "lensmith_inter_token_latency_seconds", "Between two writes of a stream.", GAP_SECONDS, "model"
        )
        self.running = gauge("lensmith_requests_running", "Answers the engines are working on.", "model")
        self.waiting = gauge("lensmith_requests_waiting", "Requests that wait for a place at an engine.", "model")
        self.batch_size = histogram(
            "lensmith_batch_size",
            "Answers running at the engine when a request is handed to it, its own included.",
            BATCH,
        )
        self.images = histogram("lensmith_images_per_request", "Images in a request.", IMAGES)
        self.image_pixels = histogram("lensmith_image_pixels", "Pixels of an image as it came.", PIXELS)
        decode_seconds = histogram(
            "lensmith_image_decode_seconds", "To decode and write anew the images of a request that needed it.", SECONDS
        )
        fetch_seconds = histogram(
            "lensmith_image_fetch_seconds", "To fetch the images of a request that are given by http(s) URL.", SECONDS
        )
        # By the steps of a request.
        self.steps = {"receive": receive_seconds, "fetch": fetch_seconds, "decode": decode_seconds}
        self.prompt_tokens = counter("lensmith_prompt_tokens_total", "Prompt tokens, as the engine counts.", "model")
        self.generation_tokens = counter(
            "lensmith_generation_tokens_total", "Generated tokens, as the engine counts.", "model"
        )
        self.upstream_requests = counter(
            "lensmith_upstream_requests_total",
            "Calls to an engine: ok, or why it failed; aborted is a client that went.",
            *("engine", "outcome"),
        )
        self.upstream_seconds = histogram(
            "lensmith_upstream_seconds", "From a call to an engine to the end of its answer.", SECONDS, "engine"
        )
        self.upstream_first_byte = histogram(
            "lensmith_upstream_first_byte_seconds",
            "From a call to an engine to the head of its answer.",
            *(SECONDS, "engine"),
        )
        self.upstream_running = gauge("lensmith_upstream_running", "Answers an engine is working on.", "engine")
        self.upstream_resting = gauge(
            "lensmith_upstream_resting",
            "1 while an engine is avoided because it failed several calls in a row.",
            "engine",
            of_workers="livemax",
        )
        self.engine_up = gauge("lensmith_engine_up", "1 while the engine answers its health check.", "engine")
        self.engine_failures = counter(
            "lensmith_engine_failures_total",
            "Times an engine failed, by reason: exit, hang, out_of_memory or start.",
            "engine",
            "reason",
        )
        self.engine_restarts = counter("lensmith_engine_restarts_total", "Times an engine was started again.", "engine")
        self.engine_metrics_up = gauge(
            "lensmith_engine_metrics_up",
            "1 if the engine's own metrics could be had and are below.",
            "engine",
            of_workers="livemostrecent",
        )
        self.worker_restarts = counter(
            "lensmith_worker_restarts_total", "Times a gateway process of --workers was started again."
        )
        self.loop_lag = histogram(
            "lensmith_event_loop_lag_seconds", "How late the event loop runs a task that is due.", LAG_SECONDS
        )
        for reason in REASONS:
            self.child(self.rejections, reason)

    def expect_model(self, model: str) -> None:
        """Give a model's series the value 0, so that its first burst of requests is an increase."""
        for status in STATUSES:
            self.child(self.requests, model, status)
        for histogram in (self.request_seconds, self.first_token_seconds, self.gap_seconds):
            self.child(histogram, model)
        for counter in (self.prompt_tokens, self.generation_tokens):
            self.child(counter, model)

    def expect_engine(self, engine: str) -> None:
        """The same for an engine's series."""
        for outcome in OUTCOMES:
            self.child(self.upstream_requests, engine, outcome)
        for histogram in (self.upstream_seconds, self.upstream_first_byte):
            self.child(histogram, engine)

    def child(self, metric: Labelled, *labels: str) -> Labelled:
        """`metric.labels(*labels)`, remembered: the library looks it up under a lock, ten times a request."""
        found: Labelled | None = self._children.get((metric, labels))
        if found is None:
            found = self._children[metric, labels] = metric.labels(*labels)
        return found

    def exposition(self) -> bytes:
        """The gateway's own metrics in the text format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag for as long as the task lives."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD
            await asyncio.sleep(LAG_PERIOD)
            self.loop_lag.observe(max(0.0, loop.time() - due))


def documentation() -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| metric | kind | labels | |"
    yield "|---|---|---|---|"
    for name, kind, labels, help in Metrics().described:
        yield f"| `{name}` | {kind} | {', '.join(labels)} | {help} |"


if __name__ == "__main__":
    print("\n".join(documentation()))
