"""The interface of an engine, whoever started it, and the request for its list of models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import aiohttp
import orjson
from yarl import URL

from gateway.engines.spec import EngineSpec
from gateway.telemetry.metrics import Metrics

PROBE_SECONDS = 2.0
PROBE_TIMEOUT = 5.0
MAX_MODELS = 256


class Engine:
    """Where requests go: a server with an OpenAI API, whose health is watched from `start` to `stop`.

    `name` is its label in the metrics. `reason` says in words why it isn't `ready`; `failure` is set once it was given
    up for good.
    """

    spec: EngineSpec
    name: str
    url: URL
    key: str | None = None
    served: list[str]  # the names it knows its models by
    failure: str | None = None
    image_pixels = 0  # maximum pixels of an image that it was planned for; 0: no limit
    identity: Hashable = None  # equal for two that would be the same
    started_here = False  # a process of ours runs it

    def __init__(self) -> None:
        self.ready = False
        self.on_change: Callable[[], None] = lambda: None  # called after every change of `ready`, `served`, `failure`
        self._metrics: Metrics | None = None

    @property
    def reason(self) -> str:
        raise NotImplementedError

    @property
    def retry_after(self) -> float:
        """Seconds after which asking again makes sense."""
        return PROBE_SECONDS

    async def start(self, metrics: Metrics) -> None:
        self._metrics = metrics
        metrics.expect_engine(self.name)
        self._changed(self.ready)

    async def stop(self) -> None:
        if self._metrics is not None:
            self._metrics.engine_up.remove(self.name)
            self._metrics = None

    async def exit_reason(self) -> str:
        """Why it broke off an answer, in sentences, if it has died of it; else ""."""
        return ""

    def _changed(self, ready: bool) -> None:
        self.ready = ready
        if self._metrics is not None:
            self._metrics.engine_up.labels(self.name).set(ready)
        self.on_change()


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


@dataclass(frozen=True)
class ListedModels:
    """What /v1/models of an engine lists."""

    names: list[str]
    owners: frozenset[str]  # their `owned_by`


async def fetch_models(session: aiohttp.ClientSession, url: URL, key: str | None) -> list[str]:
    """The model names of an engine's /v1/models. Raises EngineUnreachable."""
    return (await list_models(session, url, key)).names


async def list_models(session: aiohttp.ClientSession, url: URL, key: str | None) -> ListedModels:
    """An engine's /v1/models, at most MAX_MODELS of them. Raises EngineUnreachable."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.get(
            url / "v1/models", headers=headers, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
        ) as answer:
            if answer.status != 200:
                raise EngineUnreachable(f"{url}/v1/models answered HTTP {answer.status}")
            listed = orjson.loads(await answer.read())
        names = [model["id"] for model in listed["data"] if isinstance(model["id"], str)]
        owners = {model.get("owned_by") for model in listed["data"]}
    except (aiohttp.ClientConnectorError, ConnectionError):
        raise EngineUnreachable(f"nothing answers at {url}") from None
    except (aiohttp.ClientError, asyncio.TimeoutError):
        raise EngineUnreachable(f"{url}/v1/models does not answer") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise EngineUnreachable(f"{url}/v1/models is not an OpenAI list of models") from None
    if not names:
        raise EngineUnreachable(f"{url} serves no model")
    return ListedModels(names[:MAX_MODELS], frozenset(owner for owner in owners if isinstance(owner, str)))
