"""The least a Python gateway can do, with three HTTP clients for the call to the engine: which of them costs what.

    python benchmarks/gateway/passthrough.py aiohttp|httpx|httpx2 UPSTREAM_URL PORT

No parsing, no checks: bytes in, bytes out, streams passed through as they come.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import uvicorn

HEADERS = {"content-type": "application/json"}
Post = Callable[[bytes], AbstractAsyncContextManager[tuple[bytes, AsyncIterator[bytes]]]]


@asynccontextmanager
async def with_aiohttp(url: str) -> AsyncIterator[Post]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        @asynccontextmanager
        async def post(body: bytes) -> AsyncIterator[tuple[bytes, AsyncIterator[bytes]]]:
            async with session.post(url, data=body, headers=HEADERS) as answer:
                yield answer.headers["content-type"].encode(), answer.content.iter_any()

        yield post


@asynccontextmanager
async def with_httpx(url: str, module: Any) -> AsyncIterator[Post]:
    limits = module.Limits(max_connections=None, max_keepalive_connections=None)
    async with module.AsyncClient(limits=limits, timeout=None) as client:

        @asynccontextmanager
        async def post(body: bytes) -> AsyncIterator[tuple[bytes, AsyncIterator[bytes]]]:
            async with client.stream("POST", url, content=body, headers=HEADERS) as answer:
                yield answer.headers["content-type"].encode(), answer.aiter_raw()

        yield post


def application(library: str, url: str) -> Callable[..., Any]:
    opened = with_aiohttp(url) if library == "aiohttp" else with_httpx(url, __import__(library))
    post: Post

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        nonlocal post
        if scope["type"] == "lifespan":
            await receive()
            async with opened as post:
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        async with post(body) as (kind, chunks):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return app


if __name__ == "__main__":
    library, upstream, port = sys.argv[1:]
    app = application(library, upstream + "/v1/chat/completions")
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
