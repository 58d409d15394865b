"""What answers in the terminal: a server at a URL, or `lensmith serve` as a child process until the chat ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import click
import yaml
from yarl import URL

from gateway.engines.base import EngineUnreachable, base_url, fetch_models
from gateway.verify.servers import RunningEngine, ready_child
from modelfiles.adapter.reader import CONFIG, AdapterError, read_adapter_config
from modelfiles.hardware.python_child import free_port, module_command

KEY = "LENSMITH_API_KEY"  # the environment variable with the key that a server at a URL wants
ADAPTER = "adapter"  # the adapter's model name beside its base's


@contextmanager
def answering(what: str, model: str | None) -> Iterator[RunningEngine]:
    """What `lensmith chat WHAT` talks to, ready. Raises ClickException, with the reason in a sentence."""
    if what.startswith(("http://", "https://")):
        yield _at_url(what, model)
        return
    if model is not None:
        raise click.UsageError("--model is for a server at a URL; a folder is one model.")
    folder = Path(what).expanduser()
    if not folder.is_dir():
        raise click.ClickException(f"{what} is no folder. Give a model folder, an adapter's folder, or a server's URL.")
    with _served(folder) as engine:
        yield engine


def _at_url(address: str, model: str | None) -> RunningEngine:
    key = os.environ.get(KEY)

    async def ask(url: URL) -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await fetch_models(session, url, key)

    try:
        url = base_url(address)
        names = asyncio.run(ask(url))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except EngineUnreachable as error:
        raise click.ClickException(f"Nothing answers: {error}. If it asks for a key, set {KEY}.") from None
    if model is not None and model not in names:
        raise click.ClickException(f"The server at {url} serves {', '.join(names)}, not '{model}'.")
    return RunningEngine(url, key, model or names[0])


@contextmanager
def _served(folder: Path) -> Iterator[RunningEngine]:
    """The folder served by a child that ends with this block; Ctrl-C in the terminal does not reach it."""
    port = free_port()
    base, name = folder, folder.resolve().name
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if (folder / CONFIG).is_file():
        base, name = base_of(folder), ADAPTER
        options += ["--adapters", f"{ADAPTER}={folder.resolve()}", "--model-name", "base"]
    else:
        options += ["--model-name", name]
    url = URL.build(scheme="http", host="127.0.0.1", port=port)
    command = [*module_command("lensmith"), "serve", str(base), *options]
    with ready_child(command, url / "ready", folder.name, own_session=True):  # Ctrl-C ends an answer, not the engine
        yield RunningEngine(url, None, name)


def base_of(adapter: Path) -> Path:
    """The folder of the base that an adapter was trained on, by its run's recipe or its own configuration.

    Raises ClickException if that folder is not here.
    """
    try:
        named = [_recipe(folder).get("model_name_or_path") for folder in (adapter, adapter.resolve().parent)]
        named.append(read_adapter_config(adapter).get("base_model_name_or_path"))
    except AdapterError as error:
        raise click.ClickException(str(error)) from None
    names = [str(name) for name in named if name]
    for name in names:
        if Path(name).expanduser().is_dir():
            return Path(name).expanduser()
    said = names[0] if names else "none"
    raise click.ClickException(
        f"The base of {adapter}, {said}, is no folder here. Serve both: lensmith serve BASE --adapters NAME={adapter}, "
        "and chat with that URL."
    )


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
