"""What the parent tells a worker: the configuration, and how its engines are."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from yarl import URL

from gateway.config.schema import Config
from gateway.engines.base import Engine
from gateway.engines.spec import EngineSpec


@dataclass(frozen=True)
class EngineState:
    """An engine of the parent's at a moment."""

    identity: Hashable
    name: str
    spec: EngineSpec
    url: URL
    key: str | None
    served: list[str]
    ready: bool
    reason: str
    retry_after: float
    failure: str | None
    image_pixels: int
    started_here: bool

    @classmethod
    def of(cls, engine: Engine) -> EngineState:
        return cls(
            engine.identity,
            engine.name,
            engine.spec,
            engine.url,
            engine.key,
            list(engine.served),
            engine.ready,
            engine.reason,
            engine.retry_after,
            engine.failure,
            engine.image_pixels,
            engine.started_here,
        )


@dataclass(frozen=True)
class Setup:
    """The first message to a worker. `sockets`: descriptors it listens at; `board`: of the shared memory."""

    worker: int
    workers: int
    config: Config
    engines: list[EngineState]
    sockets: list[int]
    board: int
    management_port: int | None
