"""`lensmith serve`: everything that can be wrong is found before anything slow starts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp
import click
from click.core import ParameterSource
from starlette.applications import Starlette

from gateway.config.file import ConfigFile
from gateway.config.options import ADAPTERS, ENGINE_ARG, settings_options
from gateway.config.schema import Config, ConfigError, settings_as_plain
from gateway.config.settings import Settings
from gateway.engines.base import EngineUnreachable, base_url, fetch_models
from gateway.engines.spec import LAUNCHED
from gateway.runtime.build import build
from gateway.runtime.models import Models
from gateway.runtime.service import Load, Service
from gateway.server import bind, run
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.metrics import Metrics
from gateway.tenants.keys import KeyFileError, key_ring
from gateway.workers.parent import Remembered, run_workers

LOG = logging.getLogger("lensmith.cli")
# The key an engine at a URL wants from the gateway; in the environment, because a command line is public.
ENGINE_KEY = "LENSMITH_ENGINE_KEY"
REDIS = "LENSMITH_REDIS"
STUDIO = "studio.mounted:mounted_studio"  # module:function of (folder, key ring, the address that is listened at)


# Keys of the file -> the names of their options here.
PARTS = {
    "host": "host",
    "port": "port",
    "management_port": "management_port",
    "workers": "workers",
    "keys": "key_file",
    "redis": "redis_url",
}


@click.command()
@click.argument("model_dir", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    metavar="transformers|lmdeploy|vllm|URL",
    help="What runs the model, or the address of an OpenAI-compatible server that already does.  [default: lmdeploy if "
    "it is installed and there is an NVIDIA GPU, else transformers]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option(
    "--management-port",
    type=click.IntRange(0, 65535),
    help="Port for /metrics and all that /ready knows, on the same host; then nowhere else. It asks for no key.",
)
@click.option("--model-name", help="Name that clients give in 'model'.  [default: the folder's name]")
@click.option(
    "--keys",
    "key_file",
    type=click.Path(path_type=Path),
    help="File of API keys that clients need; see `lensmith keys`.",
)
@ADAPTERS
@ENGINE_ARG
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Gateway processes that share the port, the limits and the engines.",
)
@click.option(
    "--redis",
    "redis_url",
    envvar=REDIS,
    metavar="URL",
    help="A Redis that keeps the keys' limits, so that several gateways share them: redis://HOST:6379. If it has a "
    f"password, better in the environment, as {REDIS}.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="A YAML file that says all this, for several models and engines. Options given beside it win.",
)
@click.option(
    "--studio",
    "studio_folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Show the studio at /studio too, over this workspace folder; it lets in who has a key that is not limited to "
    "some models.",
)
@click.option("--config-schema", is_flag=True, help="Print the file's JSON schema, for editors, and leave.")
@settings_options
@click.pass_context
def serve(
    context: click.Context,
    /,
    config_path: Path | None,
    config_schema: bool,
    studio_folder: Path | None,
    **given: Any,
) -> None:
    """Serve a model folder, an engine's URL, or all that a file says, behind an OpenAI-compatible API.

    MODEL_DIR is a Hugging Face directory; `lensmith export` writes one.
    """
    if config_schema:
        click.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    try:
        settings = Settings(**{setting.name: given[setting.name] for setting in dataclasses.fields(Settings)})
    except ValueError as error:
        raise click.UsageError("--" + str(error).replace("_", "-")) from None
    try:
        metrics = Metrics()
        if config_path is not None:
            load = Remembered(from_file(context, ConfigFile(config_path)))
            service = Service(load, metrics)
        else:
            # First, because an engine may have to be asked before the rest is known.
            ring = key_ring(given["key_file"], given["redis_url"], metrics)
            load = Remembered(from_arguments(given, settings))
            service = Service(load, metrics, ring)
            at_url = (given["engine"] or "").startswith(("http://", "https://"))
            service.follows_engine = at_url and given["model_name"] is None
    except (ConfigError, KeyFileError) as error:
        raise click.ClickException(str(error)) from None
    bound = bind(service.config.host, service.config.port)
    configure_logging()
    if service.ring is None and not bound.getsockname()[0].startswith(("127.", "::1")):
        LOG.warning("Whoever reaches this port may use it; --keys FILE asks for API keys.")
    with contextlib.ExitStack() as sockets:
        sockets.enter_context(bound)
        studio = None if studio_folder is None else open_studio(studio_folder, service, bound)
        management = None
        if service.config.management_port is not None:
            management = sockets.enter_context(
                bind(service.config.host, service.config.management_port, "--management-port")
            )
        if service.config.workers == 1:
            run(service, bound, management, reloads=config_path is not None, studio=studio)
        elif studio is not None:
            raise click.UsageError("--studio is for one gateway process; leave --workers out.")
        else:
            run_workers(service, load, bound, management, reloads=config_path is not None)


def open_studio(folder: Path, service: Service, bound: socket.socket) -> Starlette:
    """The studio's application, which this package does not know until somebody asks for it. Raises ClickException."""
    module, _, factory = STUDIO.partition(":")
    made: Starlette = getattr(importlib.import_module(module), factory)(folder, service.ring, bound.getsockname())
    return made


def from_file(context: click.Context, file: ConfigFile) -> Load:
    """What the file says; options that are given too win."""
    sources = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    given = {name: value for name, value in context.params.items() if context.get_parameter_source(name) in sources}
    for name, shown in (
        ("model_dir", "MODEL_DIR"),
        ("engine", "--engine"),
        ("model_name", "--model-name"),
        ("engine_args", "--engine-arg"),
        ("adapters", "--adapters"),
    ):
        if name in given:
            raise click.UsageError(f"Give {shown} or --config, not both; the file says what the models are.")
    parts = {part: given[name] for part, name in PARTS.items() if name in given}
    limits = {setting.name: given[setting.name] for setting in dataclasses.fields(Settings) if setting.name in given}

    def load(metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        config = file.read().changed(parts, limits)
        try:
            return config, build(config, metrics, before)
        except ConfigError as error:
            raise file.with_location(error) from None

    return load


def from_arguments(given: dict[str, Any], settings: Settings) -> Load:
    """The same for one folder or URL, and everything else as it is by default."""
    folder, engine = given["model_dir"], given["engine"]
    if engine is not None and engine.startswith(("http://", "https://")):
        if folder is not None:
            raise click.UsageError("Give MODEL_DIR or the URL of an engine, not both.")
        if given["engine_args"] or given["adapters"]:
            what = "--engine-arg" if given["engine_args"] else "--adapters"
            raise click.UsageError(f"{what} is for an engine that is started here, not for one at a URL.")
        models = connect(engine, given["model_name"])
        if given["model_name"] is None:
            return from_url(given, settings, models)
    elif folder is None:
        raise click.UsageError("Give MODEL_DIR, --config FILE, or --engine URL for an engine that is already running.")
    else:
        if engine not in (None, *LAUNCHED):
            raise click.UsageError(f"--engine must be {', '.join(sorted(LAUNCHED))} or a URL, not '{engine}'.")
        replica = {"folder": str(folder), "engine": engine, "engine_args": given["engine_args"]}
        name = given["model_name"] or folder.expanduser().resolve().name
        models = {name: {"replicas": [replica], "adapters": given["adapters"]}}
    parts = {part: given[name] for part, name in PARTS.items()}
    config = Config.model_validate({**parts, "settings": settings_as_plain(settings), "models": models})
    return lambda metrics, before: (config, build(config, metrics, before))


def from_url(given: dict[str, Any], settings: Settings, models: dict[str, Any]) -> Load:
    """All models of an engine, also those that its list gains later: `before` has the engine that lists them."""
    parts = {part: given[name] for part, name in PARTS.items()}
    replica = next(iter(models.values()))

    def load(metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        served = [] if before is None else [name for engine in before.engines for name in engine.served]
        listed = dict.fromkeys([*models, *served], replica)
        config = Config.model_validate({**parts, "settings": settings_as_plain(settings), "models": listed})
        return config, build(config, metrics, before)

    return load


def connect(given: str, only: str | None) -> dict[str, Any]:
    """The models that the engine at this address lists, as they stand in a configuration.

    Raises ClickException if there is no engine.
    """
    try:
        url = base_url(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    key = os.environ.get(ENGINE_KEY)

    async def ask() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await fetch_models(session, url, key)

    try:
        names = asyncio.run(ask())
    except EngineUnreachable as error:
        raise click.ClickException(f"No engine to serve: {error}.") from None
    if only is not None:
        if only not in names:
            raise click.ClickException(f"The engine at {url} serves {', '.join(names)}, not '{only}'.")
        names = [only]
    replica = {"url": str(url), "api_key_env": ENGINE_KEY if key else None}
    return {name: {"replicas": [replica]} for name in names}
