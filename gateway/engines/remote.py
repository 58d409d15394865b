"""An engine at a URL: somebody else starts and stops it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
from yarl import URL

from gateway.engines.base import PROBE_SECONDS, Engine, EngineUnreachable, fetch_models
from gateway.engines.spec import OPENAI
from gateway.telemetry.metrics import Metrics


class RemoteEngine(Engine):
    """An OpenAI-compatible server somebody else started. Its models are asked for again every few seconds."""

    def __init__(self, url: URL, key: str | None) -> None:
        super().__init__()
        self.spec = OPENAI
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
                before = self.ready, self.served
                try:
                    self.served, self._problem, failures = await fetch_models(session, self.url, self.key), "", 0
                except EngineUnreachable as error:
                    self._problem, failures = f"{error}.", failures + 1
                self._asked.set()
                # One failure of an engine that has worked may be a moment's load.
                ready = not self._problem or (self.ready and failures < 2)
                if (ready, self.served) != before:
                    self._changed(ready)
                await asyncio.sleep(PROBE_SECONDS)
