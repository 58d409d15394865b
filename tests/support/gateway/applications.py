"""The gateway's application in the test's own process."""

from __future__ import annotations

from pathlib import Path

from gateway.config.schema import Config
from gateway.runtime.build import build
from gateway.runtime.models import Models
from gateway.runtime.service import Service
from gateway.telemetry.metrics import Metrics


def service_for(url: str, *, keys: Path | None = None) -> Service:
    """A service of one model, `fake`, at an engine's URL."""

    def load(metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        config = Config.model_validate({"models": {"fake": {"replicas": [{"url": url}]}}, "keys": keys})
        return config, build(config, metrics, before)

    return Service(load, Metrics())
