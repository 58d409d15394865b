"""Which engine answers at a URL: what its list of models and its version say."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection

import aiohttp
import orjson
from yarl import URL

from gateway.engines.base import PROBE_TIMEOUT
from gateway.engines.spec import LMDEPLOY, OPENAI, VLLM, EngineSpec


def spec_at_url(spec: EngineSpec) -> EngineSpec:
    """A spec for an engine that somebody else started, perhaps with a tool-call parser."""
    if spec.name != LMDEPLOY.name:
        return spec
    # Started without a parser it refuses `tools` by itself.
    refused = {name: reason for name, reason in spec.refused.items() if name != "tools"}
    return dataclasses.replace(spec, refused=refused)


async def recognise_engine(
    session: aiohttp.ClientSession, url: URL, key: str | None, owners: Collection[str]
) -> EngineSpec:
    """The engine at `url`; OPENAI if it is none of those known. `owners`: `owned_by` in its list of models."""
    for spec in (LMDEPLOY, VLLM):
        if spec.name in owners:
            return spec_at_url(spec)
    # Only vLLM has /version; a proxy before it may list its models under another owner.
    return VLLM if await _has_version(session, url, key) else OPENAI


async def _has_version(session: aiohttp.ClientSession, url: URL, key: str | None) -> bool:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
    try:
        async with session.get(url / "version", headers=headers, timeout=timeout, allow_redirects=False) as answer:
            found = orjson.loads(await answer.content.read(10_000)) if answer.status == 200 else None
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, orjson.JSONDecodeError):
        return False
    return isinstance(found, dict) and isinstance(found.get("version"), str)
