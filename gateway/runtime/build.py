"""From a configuration to models and engines: everything that can be wrong is found before anything slow starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.api.unsupported import HARMLESS
from gateway.config.schema import Config, ConfigError, ModelConfig, ReplicaConfig
from gateway.config.settings import Settings
from gateway.engines.base import Engine, base_url
from gateway.engines.launch import engine_name, launch
from gateway.engines.remote import RemoteEngine, spec_at_url
from gateway.engines.spec import AT_URL
from gateway.media.pixel_budget import PixelBudget
from gateway.planning.sampling_defaults import sampling_defaults
from gateway.runtime.models import Model, Models, Replica
from gateway.scheduling.slots import Slots
from gateway.telemetry.metrics import Metrics
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

MakeSlots = Callable[[Metrics, str], Slots]


def build(
    config: Config,
    metrics: Metrics,
    before: Models | None = None,
    engines: Iterable[Engine] = (),
    slots: MakeSlots = Slots,
) -> Models:
    """The models of a configuration, not started yet. Raises ConfigError.

    `before`: what is served until now. Engines that stay as they are, and the queues of their models, are taken over.
    `engines`: more that there are already. `slots` makes the places of a model that is new.
    """
    _check_names(config)
    return _Builder(config, metrics, before, engines, slots).models()


def _check_names(config: Config) -> None:
    """Raises ConfigError for a name that two models have."""
    taken = {name: name for name in config.models}
    for name, model in config.models.items():
        given: list[tuple[tuple[str | int, ...], str]] = [
            (("adapters", adapter), adapter) for adapter in model.adapters
        ]
        given += [(("aliases", at), alias) for at, alias in enumerate(model.aliases)]
        for where, another in given:
            if another in taken:
                raise ConfigError(f"'{another}' already names {taken[another]}.", ("models", name, *where))
            taken[another] = name


class _Builder:
    def __init__(
        self, config: Config, metrics: Metrics, before: Models | None, engines: Iterable[Engine], slots: MakeSlots
    ) -> None:
        self._config = config
        self._settings = config.limits
        self._metrics = metrics
        self._before = before
        # An engine that was given up gets another chance.
        running = [] if before is None else [engine for engine in before.engines if engine.failure is None]
        self._engines = {engine.identity: engine for engine in (*running, *engines)}
        self._make_slots = slots
        self._slots: list[tuple[Replica, int]] = []

    def models(self) -> Models:
        models: list[Model] = []
        for name, model in self._config.models.items():
            models.append(self._model(name, model))
            models += self._adapters(models[-1], model)
        made = Models(models)
        for replica, slots in self._slots:  # only now, when nothing can be wrong any more
            replica.slots = slots
        return made

    def _model(self, name: str, config: ModelConfig) -> Model:
        settings = self._settings
        replicas, budgets = [], []
        defaults: dict[str, Any] = {}  # of the first folder: all replicas serve the same model
        byte_level = True
        if config.folder is not None:
            folder = open_folder(config.folder, ("models", name, "folder"))
            budgets.append(pixel_budget(folder, settings))
            defaults, byte_level = sampling_defaults(folder), folder.byte_level
        for at, described in enumerate(config.replicas):
            where = ("models", name, "replicas", at)
            if described.folder is not None:
                folder = open_folder(described.folder, (*where, "folder"))
                engine = self._local(described, folder, config.adapters, where)
                budgets.append(pixel_budget(folder, settings, engine.image_pixels))
                defaults = defaults or sampling_defaults(folder)
            else:
                engine = self._remote(described, where, byte_level)
            slots = settings.max_running or described.slots or engine.spec.slots
            replicas.append(self._replica(name, engine, described.model or name, slots))
        model = Model(
            name,
            replicas,
            aliases=config.aliases,
            sampling={**defaults, **config.sampling.model_dump(exclude_none=True)},
            # An engine elsewhere says nothing of its model's images; a folder for the same model does.
            budget=min(budgets, key=_max_pixels, default=PixelBudget(max_pixels=settings.image_pixels)),
            max_waiting=settings.max_waiting,
            slots=self._places(name),
        )
        for field, value in model.sampling.items():
            if field in model.spec.refused and value not in HARMLESS.get(field, ()):
                raise ConfigError(
                    f"'{field}' cannot be honoured: {model.spec.refused[field]}.", ("models", name, "sampling", field)
                )
        return model

    def _adapters(self, base: Model, config: ModelConfig) -> Iterator[Model]:
        """A model for each adapter of the base, at the base's engines. Raises ConfigError."""
        local = [replica for replica in base.replicas if replica.engine.started_here]
        for name in config.adapters:
            if not local:
                raise ConfigError("Adapters need a replica with a folder.", ("models", base.name, "adapters", name))
            slots = self._settings.max_running
            yield Model(
                name,
                [self._replica(name, at.engine, engine_name(name), slots or at.engine.spec.slots) for at in local],
                sampling=base.sampling,
                budget=base.budget,
                max_waiting=self._settings.max_waiting,
                slots=self._places(name),
            )

    def _places(self, name: str) -> Slots:
        before = self._known(name)
        return before.slots if before is not None else self._make_slots(self._metrics, name)

    def _known(self, name: str) -> Model | None:
        return self._before.get(name) if self._before is not None else None

    def _replica(self, name: str, engine: Engine, served: str, slots: int) -> Replica:
        before = self._known(name)
        known = [at for at in (before.replicas if before else ()) if (at.engine, at.model) == (engine, served)]
        replica = known[0] if known else Replica(engine, served)
        self._slots.append((replica, slots))
        return replica

    def _local(
        self, described: ReplicaConfig, folder: ModelFolder, adapters: Mapping[str, Path], where: tuple[str | int, ...]
    ) -> Engine:
        # Before its plan is made: that depends on the memory which the engine, if it runs, has taken already.
        identity = (where, folder.path, described.model_dump_json(), tuple(adapters.items()))
        if identity not in self._engines:
            engine, pixels = launch(
                folder, str(where[1]), described, adapters, where, max_images=self._settings.max_images
            )
            engine.image_pixels, engine.identity = pixels, identity
            self._engines[identity] = engine
        return self._engines[identity]

    def _remote(self, described: ReplicaConfig, where: tuple[str | int, ...], byte_level: bool) -> Engine:
        assert described.url is not None
        try:
            url = base_url(described.url)
        except ValueError as error:
            raise ConfigError(str(error), (*where, "url")) from None
        key = engine_key(described, where)
        # One engine, and one health check, for all models that are served at the same address.
        identity = ("url", url, key, described.engine, byte_level)
        if identity not in self._engines:
            spec = None if described.engine is None else spec_at_url(AT_URL[described.engine])
            self._engines[identity] = RemoteEngine(url, key, spec, byte_level)
            self._engines[identity].identity = identity
        return self._engines[identity]


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
    min_pixels, max_pixels = folder.image_pixel_limits
    limits = [limit for limit in (max_pixels, settings.image_pixels, pixels) if limit]
    return PixelBudget(folder.patch_size * folder.merge_size or 1, min_pixels, min(limits, default=0))


def _max_pixels(budget: PixelBudget) -> float:
    return budget.max_pixels or math.inf
