"""What /metrics answers: the gateway's metrics, and those of its engines, marked as theirs.

An engine's are fetched when ours are asked for; one that doesn't answer in time is left out, so that no old figure is
passed off as a new one. They are renamed to `lensmith_engine_…` and get the label `engine`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp

from gateway.engine import Engine
from gateway.metrics import Metrics
from gateway.models import Models

PREFIX = "lensmith_engine_"
SECONDS = 2.0  # Prometheus waits 10
# However often somebody asks us, so long is an engine left in peace.
FRESH_SECONDS = 1.0
BYTES_LIMIT = 4 * 1024 * 1024
LINES_LIMIT = 10_000

# LMDeploy 0.18 refreshes these every 10 s only, and its queue is not where it counts; `lensmith_requests_running` and
# `lensmith_requests_waiting` are exact.
LEFT_OUT = frozenset(
    f"lmdeploy:num_{name}"
    for name in ("requests_running", "requests_waiting", "api_requests_routed", "api_requests_waiting")
)

# https://github.com/prometheus/docs/blob/main/docs/instrumenting/exposition_formats.md, version 0.0.4.
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
META = re.compile(rf"# (HELP|TYPE) ({NAME}) (.*)")
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? ([-+.0-9a-zA-Z]+)(?: -?[0-9]+)?")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"')
LABELS = re.compile(rf"{LABEL.pattern}(?:,{LABEL.pattern})*,?")
KINDS = frozenset(("counter", "gauge", "histogram", "summary"))
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


@dataclass
class Family:
    """A metric of engines: all its samples stand together, after its two comments."""

    kind: str = "untyped"
    help: str = ""
    samples: list[str] = field(default_factory=list)


class Exposition:
    """`models` gives those of the configuration that counts now."""

    def __init__(self, models: Callable[[], Models], metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
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
        self._look_at_replicas()
        return self._metrics.exposition() + self._fetched

    def _look_at_replicas(self) -> None:
        """Set the gauges whose values others keep; a replica that is no longer configured is no longer in them."""
        running: dict[str, float] = {}
        resting: dict[str, float] = {}
        for model in self._models().all:
            for replica in model.replicas:
                running[replica.name] = running.get(replica.name, 0) + replica.outstanding
                resting[replica.name] = max(resting.get(replica.name, 0), model.router.rest(replica) > 0)
        gauges = self._metrics.upstream_running, self._metrics.upstream_resting
        for gauge, values in zip(gauges, (running, resting), strict=True):
            gauge.clear()
            for name, value in values.items():
                gauge.labels(name).set(value)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _engines(self) -> bytes:
        engines = self._models().engines
        texts = await asyncio.gather(*(self._fetch(engine) for engine in engines))
        families: dict[str, Family] = {}
        self._metrics.engine_metrics_up.clear()
        for engine, text in zip(engines, texts, strict=True):
            self._metrics.engine_metrics_up.labels(engine.name).set(text is not None)
            if text is not None:
                gather(families, text, engine.name)
        ours = {name for name, _, _, _ in self._metrics.described}
        written = (write(name, family) for name, family in families.items() if name not in ours)
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


def gather(families: dict[str, Family], text: str, engine: str) -> None:
    """Add the metrics in an engine's exposition to `families`, under their new names."""
    label = f'engine="{escape(engine)}"'
    for line in text.split("\n")[:LINES_LIMIT]:
        if (meta := META.fullmatch(line)) is not None:
            what, name, rest = meta.groups()
            if name in LEFT_OUT:
                continue
            family = families.setdefault(renamed(name), Family())
            if what == "TYPE":
                family.kind = rest if rest in KINDS else "untyped"
            else:
                family.help = rest
        elif (sample := SAMPLE.fullmatch(line)) is not None:
            name, labels, value = sample.groups()
            if name in LEFT_OUT or name.endswith("_created") or (labels and LABELS.fullmatch(labels) is None):
                continue
            try:
                float(value)
            except ValueError:
                continue
            # An `engine` label of its own becomes `exported_engine`, as Prometheus does it.
            pairs = {"exported_engine" if key == "engine" else key: text for key, text in LABEL.findall(labels or "")}
            written = ",".join([label, *(f'{key}="{text}"' for key, text in pairs.items() if key[:2] != "__")])
            new = renamed(name)
            family = families.setdefault(family_of(new, families), Family())
            family.samples.append(f"{new}{{{written}}} {value}\n")


def renamed(name: str) -> str:
    """`lmdeploy:x` becomes `lensmith_engine_lmdeploy_x`; the embedded engine's names are like that already."""
    return name if name.startswith(PREFIX) else PREFIX + name.replace(":", "_")


def family_of(name: str, families: dict[str, Family]) -> str:
    """The name in the comments before a sample: a histogram's is its samples' without the end."""
    if name in families:
        return name
    for suffix in SUFFIXES:
        if name.endswith(suffix) and name.removesuffix(suffix) in families:
            return name.removesuffix(suffix)
    return name


def write(name: str, family: Family) -> Iterator[str]:
    if family.samples:
        yield f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"
        yield from family.samples


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
