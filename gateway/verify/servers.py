"""Runs the engines that are compared: ours as child processes, others at their URLs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import click
from yarl import URL

from gateway.bench.cli import KEY
from gateway.engines.base import EngineUnreachable, base_url, fetch_models
from gateway.engines.spec import LAUNCHED
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.python_child import free_port, module_command
from modelfiles.hardware.server_child import ServerChildError, server_child


@dataclass(frozen=True)
class RunningEngine:
    url: URL
    key: str | None
    model: str


def check_available(engine: str, folder: ModelFolder) -> None:
    """Raises ClickException if the engine cannot be started or asked: not installed, or no answer at its URL."""
    if engine.startswith(("http://", "https://")):
        remote_engine(engine, folder)
        return
    spec = LAUNCHED[engine]
    for module in spec.modules:
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(f"The {engine} engine needs {module}: pip install 'lensmith[{spec.extra}]'")


@contextmanager
def running(engine: str, folder: ModelFolder) -> Iterator[RunningEngine]:
    """The engine, ready to be asked. Raises ClickException if it does not start or does not answer.

    transformers is our embedded engine itself. lmdeploy is behind `lensmith serve`, so that what is verified is what
    clients get.
    """
    if engine.startswith(("http://", "https://")):
        yield remote_engine(engine, folder)
        return
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if engine == "transformers":
        argv = ["gateway.embedded", str(folder.path), *options, "--served-model-name", folder.name]
    else:
        argv = ["lensmith", "serve", str(folder.path), "--engine", engine, *options, "--model-name", folder.name]
    url = URL.build(scheme="http", host="127.0.0.1", port=port)
    command = [*module_command(argv[0]), *argv[1:]]
    with ready_child(command, url / ("health" if engine == "transformers" else "ready"), engine):
        yield RunningEngine(url, None, folder.name)


@contextmanager
def ready_child(command: list[str], health: URL, name: str, own_session: bool = False) -> Iterator[None]:
    """Starts a server, waits until `health` says that it is ready, and ends it.

    own_session: a Ctrl-C in the terminal does not reach it. Raises ClickException.
    """
    try:
        with server_child(command, str(health), name, own_session):
            yield
    except ServerChildError as error:
        raise click.ClickException(str(error)) from None


def remote_engine(address: str, folder: ModelFolder) -> RunningEngine:
    """The engine at an address; of its models the one with the folder's name, else the first."""

    async def list_models(url: URL, key: str | None) -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await fetch_models(session, url, key)

    try:
        url, key = base_url(address), os.environ.get(KEY)
        models = asyncio.run(list_models(url, key))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except EngineUnreachable as error:
        raise click.ClickException(f"There is nothing to verify: {error}.") from None
    return RunningEngine(url, key, folder.name if folder.name in models else models[0])
