"""What /metrics answers: the gateway's metrics, and those of its engines, marked as theirs.

An engine's are fetched when ours are asked for; one that doesn't answer in time is left out, so that no old figure is
passed off as a new one. They are renamed to `lensmith_engine_…` and get the label `engine`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp

from gateway.engines.base import Engine
from gateway.runtime.models import Models
from gateway.telemetry.exposition_format import MetricFamily, merge_exposition, write_family
from gateway.telemetry.metrics import Metrics

SECONDS = 2.0  # Prometheus waits 10
# However often somebody asks us, so long is an engine left in peace.
FRESH_SECONDS = 1.0
BYTES_LIMIT = 4 * 1024 * 1024


def set_replica_gauges(models: Models, metrics: Metrics) -> None:
    """Set the gauges whose values others keep; a replica that is no longer configured is no longer in them."""
    running: dict[str, float] = {}
    cooling: dict[str, float] = {}
    for model in models.all:
        for replica in model.replicas:
            running[replica.name] = running.get(replica.name, 0) + replica.outstanding
            cooling[replica.name] = max(cooling.get(replica.name, 0), model.router.cooldown(replica) > 0)
    for gauge, values in ((metrics.upstream_running, running), (metrics.upstream_resting, cooling)):
        gauge.clear()
        for name, value in values.items():
            gauge.labels(name).set(value)


class Exposition:
    """`models` gives those of the configuration that counts now, `own` the gateway's own metrics."""

    def __init__(self, models: Callable[[], Models], metrics: Metrics, own: Callable[[], Awaitable[bytes]]) -> None:
        self._models = models
        self._metrics = metrics
        self._own = own
        self._session: aiohttp.ClientSession | None = None
        self._fetched = b""
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def text(self) -> bytes:
        """The text format of Prometheus, version 0.0.4."""
        async with self._fetching:
            if time.monotonic() - self._fetched_at >= FRESH_SECONDS:
                self._fetched = await self._engines()
                self._fetched_at = time.monotonic()
        set_replica_gauges(self._models(), self._metrics)
        return await self._own() + self._fetched

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _engines(self) -> bytes:
        engines = self._models().engines
        texts = await asyncio.gather(*(self._fetch(engine) for engine in engines))
        families: dict[str, MetricFamily] = {}
        self._metrics.engine_metrics_up.clear()
        for engine, text in zip(engines, texts, strict=True):
            self._metrics.engine_metrics_up.labels(engine.name).set(text is not None)
            if text is not None:
                merge_exposition(families, text, engine.name)
        ours = {name for name, _, _, _ in self._metrics.described}
        written = (write_family(name, family) for name, family in families.items() if name not in ours)
        return "".join(line for lines in written for line in lines).encode()

    async def _fetch(self, engine: Engine) -> str | None:
        """The engine's exposition; None if it can't be had."""
        if not engine.ready:
            return None
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))
        headers = {"accept": "text/plain;version=0.0.4"}
        if engine.key:
            headers["authorization"] = f"Bearer {engine.key}"
        try:
            async with self._session.get(engine.url / "metrics", headers=headers) as answer:
                if answer.status != 200 or answer.content_type != "text/plain":
                    return None
                text = await answer.content.read(BYTES_LIMIT + 1)
                while chunk := await answer.content.readany():
                    text += chunk
                    if len(text) > BYTES_LIMIT:
                        return None
                return text.decode("utf-8", "replace")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return None
