"""An engine at a URL: somebody else starts and stops it. Which one it is, its list of models and its version say."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection
from contextlib import suppress

import aiohttp
import orjson
from yarl import URL

from gateway.engines.base import PROBE_SECONDS, PROBE_TIMEOUT, Engine, EngineUnreachable, list_models
from gateway.engines.spec import LMDEPLOY, OPENAI, VLLM, EngineSpec
from gateway.telemetry.metrics import Metrics


class RemoteEngine(Engine):
    """An OpenAI-compatible server somebody else started. Its models are asked for again every few seconds.

    `spec`: which engine it is; None finds out whenever its list of models has other owners than before.
    `byte_level`: whether the model's vocabulary is byte-level BPE's, for engines that spell tokens as it does.
    """

    def __init__(self, url: URL, key: str | None, spec: EngineSpec | None = None, byte_level: bool = True) -> None:
        super().__init__()
        self.spec = dataclasses.replace(spec or OPENAI, byte_level=byte_level)
        self._recognises = spec is None
        self._byte_level = byte_level
        self._owners: frozenset[str] | None = None
        self.name = f"{url.host}:{url.port}{url.path.rstrip('/')}"
        self.url = url
        self.key = key
        self.served = []
        self._problem = f"{url} has not been asked yet."
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        return self._problem

    async def start(self, metrics: Metrics) -> None:
        await super().start(metrics)
        self._task = asyncio.create_task(self._watch())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._asked.wait(), PROBE_SECONDS)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await super().stop()

    async def _watch(self) -> None:
        failures = 0
        async with aiohttp.ClientSession() as session:
            while True:
                before = self.ready, self.served, self.spec
                try:
                    await self._refresh(session)
                    self._problem, failures = "", 0
                except EngineUnreachable as error:
                    self._problem, failures = f"{error}.", failures + 1
                self._asked.set()
                # One failure of an engine that has worked may be a moment's load.
                ready = not self._problem or (self.ready and failures < 2)
                if (ready, self.served, self.spec) != before:
                    self._changed(ready)
                await asyncio.sleep(PROBE_SECONDS)

    async def _refresh(self, session: aiohttp.ClientSession) -> None:
        """Ask for the models, and for the engine where those are somebody else's now. Raises EngineUnreachable."""
        listed = await list_models(session, self.url, self.key)
        if self._recognises and listed.owners != self._owners:
            spec = await recognise_engine(session, self.url, self.key, listed.owners)
            self.spec = dataclasses.replace(spec, byte_level=self._byte_level)
            self._owners = listed.owners
        self.served = listed.names


def spec_at_url(spec: EngineSpec) -> EngineSpec:
    """A spec for an engine that somebody else started, perhaps with a tool-call parser."""
    # Started without a parser it refuses `tools` by itself. vLLM serves models that know `reasoning_effort`, too.
    theirs = {LMDEPLOY.name: {"tools"}, VLLM.name: {"tools", "reasoning_effort"}}.get(spec.name, set())
    refused = {name: reason for name, reason in spec.refused.items() if name not in theirs}
    return dataclasses.replace(spec, refused=refused)


async def recognise_engine(
    session: aiohttp.ClientSession, url: URL, key: str | None, owners: Collection[str]
) -> EngineSpec:
    """The engine at `url`; OPENAI if it is none of those known. `owners`: `owned_by` in its list of models."""
    for spec in (LMDEPLOY, VLLM):
        if spec.name in owners:
            return spec_at_url(spec)
    # Only vLLM has /version; a proxy before it may list its models under another owner.
    return spec_at_url(VLLM) if await _has_version(session, url, key) else OPENAI


async def _has_version(session: aiohttp.ClientSession, url: URL, key: str | None) -> bool:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
    try:
        async with session.get(url / "version", headers=headers, timeout=timeout, allow_redirects=False) as answer:
            found = orjson.loads(await answer.content.read(10_000)) if answer.status == 200 else None
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, orjson.JSONDecodeError):
        return False
    return isinstance(found, dict) and isinstance(found.get("version"), str)
