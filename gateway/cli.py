"""`lensmith serve`: everything that can be wrong is found before anything slow starts."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import aiohttp
import click

from gateway.engine import Engine, EngineUnreachable, RemoteEngine, base_url, fetch_models
from gateway.engines import LAUNCHED, EngineSpec
from gateway.image_pool import PixelBudget
from gateway.keys import KeyFileError, KeyRing
from gateway.server import bind, run
from gateway.settings import Settings
from gateway.supervisor import LocalEngine
from modelfiles.folder import ModelFolder, ModelFolderError

# The key an engine at a URL wants from the gateway; in the environment, because a command line is public.
ENGINE_KEY = "LENSMITH_ENGINE_KEY"


def comma_separated(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, tuple):  # the default
        return value
    return tuple(entry for entry in (part.strip() for part in value.split(",")) if entry)


def option_type(setting: dataclasses.Field[Any]) -> Any:
    if isinstance(setting.default, tuple):
        return comma_separated
    if isinstance(setting.default, int):
        return click.IntRange(min=setting.metadata["least"])
    return click.FloatRange(min=0, min_open=True)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for every field of Settings."""
    for setting in reversed(dataclasses.fields(Settings)):
        option = click.option(
            "--" + setting.name.replace("_", "-"),
            type=option_type(setting),
            default=setting.default,
            show_default=setting.default != (),
            metavar="HOST,..." if isinstance(setting.default, tuple) else None,
            help=setting.metadata["help"],
        )
        command = option(command)
    return command


@click.command()
@click.argument("model_dir", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    metavar="transformers|lmdeploy|URL",
    help="What runs the model, or the address of an OpenAI-compatible server that already does.  [default: lmdeploy if "
    "it is installed and there is an NVIDIA GPU, else transformers]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--model-name", help="Name that clients give in 'model'.  [default: the folder's name]")
@click.option(
    "--keys",
    "key_file",
    type=click.Path(path_type=Path),
    help="File of API keys that clients need; see `lensmith keys`.",
)
@settings_options
def serve(
    model_dir: Path | None,
    engine: str | None,
    host: str,
    port: int,
    model_name: str | None,
    key_file: Path | None,
    **limits: Any,
) -> None:
    """Serve a model folder, or an engine's URL, behind an OpenAI-compatible API.

    MODEL_DIR is a Hugging Face directory; `lensmith export` writes one.
    """
    try:
        settings = Settings(**limits)
    except ValueError as error:
        raise click.UsageError("--" + str(error).replace("_", "-")) from None
    try:
        ring = KeyRing(key_file) if key_file is not None else None
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    bound = bind(host, port)
    if ring is None and not bound.getsockname()[0].startswith(("127.", "::1")):
        click.echo("lensmith: Whoever reaches this port may use it; --keys FILE asks for API keys.", err=True)
    with bound:
        chosen: Engine
        budget = PixelBudget(most=settings.image_pixels)
        if engine is not None and engine.startswith(("http://", "https://")):
            if model_dir is not None:
                raise click.UsageError("Give MODEL_DIR or the URL of an engine, not both.")
            chosen = connect(engine, model_name)
        elif model_dir is None:
            raise click.UsageError("Give MODEL_DIR, or --engine URL for an engine that is already running.")
        else:
            folder = open_folder(model_dir)
            spec = choose(engine)
            budget = pixel_budget(folder, settings)
            chosen = LocalEngine(spec, folder.path, model_name or folder.name)
        run(chosen, settings, budget, bound, ring)


def open_folder(path: Path) -> ModelFolder:
    """The model folder at `path`. Raises ClickException if it can't be served."""
    try:
        return ModelFolder.open(path)
    except ModelFolderError as error:
        raise click.ClickException(str(error)) from None


def pixel_budget(folder: ModelFolder, settings: Settings) -> PixelBudget:
    """What the folder's image processor makes of an image, and no more pixels than the settings allow."""
    least, most = folder.image_pixel_limits
    limits = [limit for limit in (most, settings.image_pixels) if limit]
    return PixelBudget(folder.patch_size * folder.merge_size or 1, least, min(limits, default=0))


def choose(engine: str | None) -> EngineSpec:
    """The engine to start. Raises ClickException if it isn't installed or has no GPU."""
    if engine is None:
        engine = "lmdeploy" if has_gpu() and installed("lmdeploy") else "transformers"
    spec = LAUNCHED.get(engine)
    if spec is None:
        raise click.UsageError(f"--engine must be {', '.join(sorted(LAUNCHED))} or a URL, not '{engine}'.")
    missing = [module for module in spec.modules if not installed(module)]
    if missing:
        raise click.ClickException(
            f"The {spec.name} engine needs {' and '.join(missing)}: pip install 'lensmith[{spec.extra}]'"
        )
    if spec.name == "lmdeploy" and not has_gpu():
        raise click.ClickException("The lmdeploy engine needs an NVIDIA GPU; use --engine transformers here.")
    return spec


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU; `/dev/dxg` is where WSL has it."""
    return bool(glob("/proc/driver/nvidia/gpus/*") or glob("/dev/nvidia[0-9]*")) or (
        Path("/dev/dxg").exists() and Path("/usr/lib/wsl/lib/libcuda.so.1").exists()
    )


def connect(address: str, only: str | None) -> RemoteEngine:
    """The engine at `address` with the models it lists. Raises ClickException if there is none."""
    try:
        url = base_url(address)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    key = os.environ.get(ENGINE_KEY)

    async def ask() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await fetch_models(session, url, key)

    try:
        models = asyncio.run(ask())
    except EngineUnreachable as error:
        raise click.ClickException(f"No engine to serve: {error}.") from None
    if only is not None:
        if only not in models:
            raise click.ClickException(f"The engine at {url} serves {', '.join(models)}, not '{only}'.")
        models = [only]
    return RemoteEngine(url, key, models, only)
