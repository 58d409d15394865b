"""A running gateway's life: started, given another configuration, drained, stopped."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from gateway.config.schema import Config, ConfigError
from gateway.config.settings import Settings
from gateway.engines.base import Engine
from gateway.http.client import Client
from gateway.http.timers import timers_of
from gateway.media.fetch import ImageFetcher
from gateway.media.pool import ImagePool
from gateway.runtime.cores import cores_for_images
from gateway.runtime.models import Models
from gateway.scheduling.byte_budget import ByteBudget
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Tracing
from gateway.tenants.keys import KeyFileError, KeyRing, key_ring

LOG = logging.getLogger("lensmith.service")

# Reads the configuration and makes its models, of those there were where it can. Raises ConfigError.
Load = Callable[[Metrics, Models | None], tuple[Config, Models]]
# What is bound when the process starts. Another value counts from the next start on.
FIXED = ("host", "port", "management_port", "workers", "keys", "redis")


@dataclass(frozen=True)
class Shares:
    """What one of several gateway processes has of the limits. `byte_budget`: the one of that many bytes."""

    processes: int = 1
    byte_budget: Callable[[int], ByteBudget] = ByteBudget


class Gateway:
    """What the routes share under one configuration. A request keeps the one it began with.

    To be made and closed in a running event loop.
    """

    def __init__(
        self, models: Models, settings: Settings, metrics: Metrics, tracing: Tracing, shares: Shares | None = None
    ) -> None:
        """`shares`: what this process has of the limits; all of them without."""
        shares = shares or Shares()
        self.models = models
        self.settings = settings
        self.metrics = metrics
        self.tracing = tracing
        image_workers = settings.image_workers or cores_for_images(models, shares.processes)
        self.pool = ImagePool(
            max(1, image_workers // shares.processes),
            settings.max_image_pixels,
            settings.image_seconds,
            math.ceil(settings.max_waiting / shares.processes),
        )
        self.fetcher = ImageFetcher(settings) if settings.image_hosts else None
        self.timers = timers_of(asyncio.get_running_loop())
        self.client = Client(settings.engine_timeout)
        self.bytes = shares.byte_budget(settings.max_bytes_in_flight)
        self.requests = 0  # in progress
        self._idle: asyncio.Event | None = None

    def enter(self) -> None:
        self.requests += 1

    def leave(self) -> None:
        self.requests -= 1
        if self._idle is not None and not self.requests:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when the last request has ended. To be called when no more can come."""
        self._idle = asyncio.Event()
        if self.requests:
            await self._idle.wait()

    async def close(self) -> None:
        await self.pool.close()
        if self.fetcher is not None:
            await self.fetcher.close()
        await self.client.close()


class Service:
    """The current Gateway, the engines that run, and what happens to both."""

    gateway: Gateway  # from `start` on

    def __init__(self, load: Load, metrics: Metrics, ring: KeyRing | None = None, shares: Shares | None = None) -> None:
        """`ring`: the keys, if they were read already. Raises ConfigError or KeyFileError."""
        self._shares = shares
        self.metrics = metrics
        self.tracing = Tracing()
        self.leaving = False  # told to stop: /ready says no
        self.draining = False  # new requests are refused, those in progress go on
        self.follows_engine = False  # models that the engine lists later are served, too
        self._following: asyncio.Task[None] | None = None
        self.on_failure: Callable[[], None] = lambda: None  # called when all engines were given up
        self.on_change: Callable[[], None] = lambda: None  # called when an engine or the configuration is another
        self._load = load
        self.config, self.models = load(metrics, None)
        self.settings = self.config.limits
        self.ring = ring or key_ring(self.config.keys, self.config.redis, metrics)
        self._old: list[Gateway] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def requests(self) -> int:
        """Requests in progress."""
        return sum(gateway.requests for gateway in (self.gateway, *self._old))

    @property
    def failure(self) -> str | None:
        return self.models.failure

    async def start(self) -> None:
        self.gateway = Gateway(self.models, self.settings, self.metrics, self.tracing, self._shares)
        await self._start(self.models.engines)
        self.models.look()

    async def _start(self, engines: list[Engine]) -> None:
        for engine in engines:
            engine.on_change = self._changed
        await asyncio.gather(*(engine.start(self.metrics) for engine in engines))

    def _changed(self) -> None:
        for gateway in (*self._old, self.gateway):
            gateway.models.look()
        if self.follows_engine and {name for engine in self.models.engines for name in engine.served} - set(
            self.models.names
        ):
            self._following = asyncio.create_task(self.reload())
        self.on_change()
        if self.failure is not None:
            self.on_failure()

    async def own_metrics(self) -> bytes:
        """The gateway's own metrics in the text format of Prometheus, version 0.0.4."""
        return self.metrics.exposition()

    async def reload(self) -> None:
        """Take over the configuration as it is now; if it can't be used, say so and go on with the one there is."""
        async with self._lock:
            try:
                config, models = self._load(self.metrics, self.models)
            except (ConfigError, KeyFileError) as error:
                LOG.error("The configuration was not reloaded. %s", error)
                return
            later = [name for name in FIXED if getattr(config, name) != getattr(self.config, name)]
            running, old = self.models.engines, self.gateway
            await self._start([engine for engine in models.engines if engine not in running])
            self._old.append(old)
            self.gateway = Gateway(models, config.limits, self.metrics, self.tracing, self._shares)
            self.models = models
            for model in old.models.all:
                model.retired = True
            models.look()
            self.on_change()
            task = asyncio.create_task(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            kept = f" {' and '.join(later)} will change at the next start." if later else ""
            LOG.info("The configuration was reloaded: %s.%s", ", ".join(models.names), kept)

    async def _retire(self, old: Gateway) -> None:
        """When the last request of an earlier configuration has ended, end what only that one used."""
        await old.idle()
        async with self._lock:
            self._old.remove(old)
            await old.close()
            used = {engine for gateway in (self.gateway, *self._old) for engine in gateway.models.engines}
            await asyncio.gather(*(engine.stop() for engine in old.models.engines if engine not in used))

    async def stop(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        gateways = [self.gateway, *self._old]
        await asyncio.gather(*(gateway.close() for gateway in gateways))
        await asyncio.gather(*(engine.stop() for engine in {e for gateway in gateways for e in gateway.models.engines}))
        if self.ring is not None:
            await self.ring.close()
        self.tracing.close()


SHUTDOWN_RETRY = 5.0  # seconds after which a client of a gateway that shuts down should come back, to another one
