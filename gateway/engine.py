"""An engine as the request path sees it, and the one that is already running somewhere."""

from __future__ import annotations

import asyncio
from typing import Protocol

import aiohttp
import orjson
from yarl import URL

from gateway.engines import OPENAI, EngineSpec
from gateway.metrics import Metrics

PROBE_SECONDS = 2.0
MAX_MODELS = 64


class Engine(Protocol):
    """Where requests go. `reason` says in words why it isn't `ready`, `retry_after` in how many seconds it may be."""

    spec: EngineSpec
    key: str | None
    models: list[str]

    @property
    def url(self) -> URL: ...

    @property
    def ready(self) -> bool: ...

    @property
    def reason(self) -> str: ...

    @property
    def retry_after(self) -> float: ...

    async def start(self, metrics: Metrics) -> None: ...

    async def stop(self) -> None: ...


class EngineUnreachable(Exception):
    """The engine gave no list of models; the message says why in one sentence."""


def base_url(address: str) -> URL:
    """The address of an OpenAI-compatible server without its /v1. Raises ValueError with a sentence if it is none."""
    # People copy the base URL of an OpenAI client, which ends in /v1.
    try:
        url = URL(address.rstrip("/").removesuffix("/v1"))
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{address} is not the address of an engine, such as http://127.0.0.1:23333.")
    return url


async def fetch_models(session: aiohttp.ClientSession, url: URL, key: str | None) -> list[str]:
    """The model names of an engine's /v1/models. Raises EngineUnreachable."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.get(url / "v1/models", headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as answer:
            if answer.status != 200:
                raise EngineUnreachable(f"{url}/v1/models answered HTTP {answer.status}")
            listed = orjson.loads(await answer.read())
        names = [model["id"] for model in listed["data"] if isinstance(model["id"], str)]
    except (aiohttp.ClientConnectorError, ConnectionError):
        raise EngineUnreachable(f"nothing answers at {url}") from None
    except (aiohttp.ClientError, asyncio.TimeoutError):
        raise EngineUnreachable(f"{url}/v1/models does not answer") from None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise EngineUnreachable(f"{url}/v1/models is not an OpenAI list of models") from None
    if not names:
        raise EngineUnreachable(f"{url} serves no model")
    return names[:MAX_MODELS]


class RemoteEngine:
    """An OpenAI-compatible server somebody else started. Its models are asked for again every few seconds."""

    def __init__(self, url: URL, key: str | None, models: list[str], only: str | None = None) -> None:
        self.spec = OPENAI
        self.url = url
        self.key = key
        self.models = models
        self._only = only
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return not self._problem

    @property
    def reason(self) -> str:
        return self._problem

    @property
    def retry_after(self) -> float:
        return PROBE_SECONDS

    async def start(self, metrics: Metrics) -> None:
        metrics.engine_up.set(1)
        self._task = asyncio.create_task(self._probe(metrics))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _probe(self, metrics: Metrics) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                await asyncio.sleep(PROBE_SECONDS)
                try:
                    names = await fetch_models(session, self.url, self.key)
                    if self._only is not None:
                        if self._only not in names:
                            raise EngineUnreachable(f"{self.url} no longer serves {self._only}")
                        names = [self._only]
                    self.models, self._problem = names, ""
                except EngineUnreachable as error:
                    self._problem = f"{error}."
                metrics.engine_up.set(self.ready)
