"""From a configuration to models and engines: everything that can be wrong is found before anything slow starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from yarl import URL

from gateway.config import Config, ConfigError, ModelConfig, ReplicaConfig
from gateway.engine import Engine, RemoteEngine, base_url
from gateway.engines import HARMLESS
from gateway.image_pool import PixelBudget
from gateway.keys import KeyRing
from gateway.launch import engine_name, launch
from gateway.metrics import Metrics
from gateway.models import Model, Models, Replica
from gateway.settings import Settings
from gateway.supervisor import LocalEngine
from modelfiles.folder import ModelFolder, ModelFolderError


def build(config: Config, metrics: Metrics) -> Models:
    """The models of a configuration, not started yet. Raises ConfigError."""
    remote: dict[tuple[URL, str | None], Engine] = {}
    models: list[Model] = []
    for name, model in config.models.items():
        models.append(_model(name, model, config.limits, metrics, remote))
        models += _adapters(config, models[-1], metrics)
    return Models(models)


def _adapters(config: Config, base: Model, metrics: Metrics) -> Iterator[Model]:
    """A model for each adapter of the base, at the base's engines. Raises ConfigError."""
    taken = {name for key, model in config.models.items() for name in (key, *model.aliases)}
    taken |= {name for key, model in config.models.items() if key != base.name for name in model.adapters}
    for name in config.models[base.name].adapters:
        where = ("models", base.name, "adapters", name)
        if name in taken:
            raise ConfigError(f"The adapter {name} has the name of another model.", where)
        replicas = [
            Replica(replica.engine, engine_name(name), replica.slots)
            for replica in base.replicas
            if isinstance(replica.engine, LocalEngine)
        ]
        if not replicas:
            raise ConfigError("Adapters need a replica with a folder.", where)
        yield Model(name, replicas, budget=base.budget, max_waiting=config.limits.max_waiting, metrics=metrics)


def key_ring(keys: Path | None, redis: str | None, metrics: Metrics) -> KeyRing | None:
    """The keys that clients need; None lets everybody in. Raises KeyFileError or ConfigError."""
    if keys is None:
        return None
    if redis is None:
        return KeyRing(keys)
    try:
        from gateway.shared_limits import SharedLimits  # here, because few have the package
    except ModuleNotFoundError:
        raise ConfigError("redis needs the package of that name: pip install 'lensmith[redis]'", ("redis",)) from None
    try:
        return KeyRing(keys, SharedLimits(redis, metrics))
    except ValueError:
        message = "redis must be the URL of a Redis, such as redis://127.0.0.1:6379."
        raise ConfigError(message, ("redis",)) from None


def _model(
    name: str,
    config: ModelConfig,
    settings: Settings,
    metrics: Metrics,
    remote: dict[tuple[URL, str | None], Engine],
) -> Model:
    replicas, budgets = [], []
    for at, replica in enumerate(config.replicas):
        where = ("models", name, "replicas", at)
        engine: Engine
        if replica.folder is not None:
            folder = open_folder(replica.folder, (*where, "folder"))
            engine, pixels = launch(folder, name, replica, config.adapters, where)
            budgets.append(pixel_budget(folder, settings, pixels))
        else:
            assert replica.url is not None
            try:
                key = (base_url(replica.url), engine_key(replica, where))
            except ValueError as error:
                raise ConfigError(str(error), (*where, "url")) from None
            # One engine, and one health check, for all models that are served at the same address.
            engine = remote.setdefault(key, RemoteEngine(*key))
        replicas.append(Replica(engine, replica.model or name, settings.max_running or replica.slots or 0))
    model = Model(
        name,
        replicas,
        aliases=config.aliases,
        sampling=config.sampling.model_dump(exclude_none=True),
        # An engine elsewhere says nothing of its model's images; a folder for the same model does.
        budget=budgets[0] if budgets else PixelBudget(most=settings.image_pixels),
        max_waiting=settings.max_waiting,
        metrics=metrics,
    )
    for field, value in model.sampling.items():
        if field in model.spec.refused and value not in HARMLESS.get(field, ()):
            raise ConfigError(f"{model.spec.refused[field]}.", ("models", name, "sampling", field))
    return model


def engine_key(replica: ReplicaConfig, where: tuple[str | int, ...]) -> str | None:
    """The key for a remote engine. Raises ConfigError if its environment variable isn't set."""
    if replica.api_key_env is None:
        return None
    key = os.environ.get(replica.api_key_env)
    if not key:
        raise ConfigError(f"The environment variable {replica.api_key_env} is not set.", (*where, "api_key_env"))
    return key


def open_folder(path: Path, where: tuple[str | int, ...] = ()) -> ModelFolder:
    """The model folder at `path`. Raises ConfigError if it can't be served."""
    try:
        return ModelFolder.open(path)
    except ModelFolderError as error:
        raise ConfigError(str(error), where) from None


def pixel_budget(folder: ModelFolder, settings: Settings, pixels: int = 0) -> PixelBudget:
    """What the folder's image processor makes of an image, and no more pixels than settings and engine allow."""
    least, most = folder.image_pixel_limits
    limits = [limit for limit in (most, settings.image_pixels, pixels) if limit]
    return PixelBudget(folder.patch_size * folder.merge_size or 1, least, min(limits, default=0))
