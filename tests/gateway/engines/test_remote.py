"""An engine at a URL is treated as the engine that it is, whoever started it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from gateway.engines.remote import RemoteEngine, spec_at_url
from gateway.engines.spec import AT_URL, LMDEPLOY
from gateway.telemetry.metrics import Metrics

Listed = list[dict[str, Any]]


@asynccontextmanager
async def server(listed: Listed, version: object = None) -> AsyncIterator[URL]:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": listed})

    async def show_version(request: web.Request) -> web.Response:
        return web.json_response(version) if version is not None else web.Response(status=404)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/version", show_version)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield URL(f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()


def with_engine(
    listed: Listed, then: Callable[[RemoteEngine], Awaitable[None]], version: object = None, **options: Any
) -> None:
    async def run() -> None:
        async with server(listed, version) as url:
            engine = RemoteEngine(url, None, **options)
            await engine.start(Metrics())
            try:
                await then(engine)
            finally:
                await engine.stop()
                await asyncio.sleep(0.05)  # for its connections to be closed in the loop that has them

    asyncio.run(run())


def model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": owner}


@pytest.mark.parametrize(
    ("owner", "version", "expected"),
    [
        ("lmdeploy", None, "lmdeploy"),
        ("vllm", {"version": "0.25.1"}, "vllm"),
        ("a proxy", {"version": "0.25.1"}, "vllm"),
        ("somebody", None, "openai"),
        ("somebody", ["0.1"], "openai"),
    ],
)
def test_it_is_recognised_by_its_list_of_models_or_its_version(owner: str, version: object, expected: str) -> None:
    async def check(engine: RemoteEngine) -> None:
        assert (engine.ready, engine.served, engine.spec.name) == (True, ["m"], expected)

    with_engine([model("m", owner)], check, version)


def test_lmdeploy_is_treated_as_one_that_was_started_here_but_may_have_a_tool_parser() -> None:
    async def check(engine: RemoteEngine) -> None:
        spec = engine.spec
        assert (spec.drops_stop, spec.raw_tokens, spec.developer_role) == (True, True, False)
        assert set(LMDEPLOY.refused) - set(spec.refused) == {"tools"}
        assert spec.extra_fields == LMDEPLOY.extra_fields
        assert not spec.byte_level

    with_engine([model("m", "lmdeploy")], check, byte_level=False)


def test_what_the_configuration_says_wins() -> None:
    async def check(engine: RemoteEngine) -> None:
        assert engine.spec.name == "lmdeploy"

    with_engine([model("m", "somebody")], check, spec=spec_at_url(AT_URL["lmdeploy"]))


def test_a_model_that_its_list_gains_is_seen_and_told_on() -> None:
    listed = [model("m", "lmdeploy")]

    async def check(engine: RemoteEngine) -> None:
        changed = asyncio.Event()
        engine.on_change = changed.set
        listed.append(model("adapter", "lmdeploy"))
        await asyncio.wait_for(changed.wait(), 10)
        assert engine.served == ["m", "adapter"]

    with_engine(listed, check)
