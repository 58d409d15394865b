"""What the call to an engine costs: ours, aiohttp's, pyreqwest's, and the least that httptools could do.

    python -m benchmarks.gateway.engine_client [--rounds 9] [--calls 400]

CPU time of this process for a call with a 100 KB JPEG to a fake engine, and for a chunk of a stream, in turns.
httptools' side is a sketch without timeouts, limits, a pool or errors: a lower bound and no client. pyreqwest takes
part where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import cast

import aiohttp
import httptools
import uvloop
from yarl import URL

from benchmarks.gateway.bench import HERE, picture, request, started
from gateway.engines.client import post
from gateway.http.client import Client
from modelfiles.hardware.python_child import free_port

CHUNKS = 20_000


class Bare(asyncio.Protocol):
    """One connection, one call at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._done.set_result(None)

    async def call(self, head: bytes, body: bytes) -> bytes:
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport.writelines((head, body))
        await self._done
        assert self._parser.get_status_code() == 200
        return b"".join(self._parts)


async def measure(port: int, rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds of CPU time by client: of a call, and of a stream's chunk (`… chunk`); one figure a round."""
    body = request(image=picture(100_000)).split(b"\r\n\r\n", 1)[1]
    stream = request(stream=True, max_tokens=CHUNKS).split(b"\r\n\r\n", 1)[1]
    url = URL(f"http://127.0.0.1:{port}/v1/chat/completions")
    head = (
        f"POST {url.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    _, bare = await asyncio.get_running_loop().create_connection(Bare, "127.0.0.1", port)
    headers = {"content-type": "application/json"}

    async def by_httptools() -> None:
        await bare.call(head.encode(), body)

    clients: dict[str, tuple[Callable[[], Awaitable[object]], int]] = {"httptools": (by_httptools, calls)}
    spent: dict[str, list[float]] = {}
    async with Client(60) as client, aiohttp.ClientSession() as session, AsyncExitStack() as stack:

        async def by_ours(body: bytes = body) -> None:
            async with post(client, url, body, None, {}) as response:
                while await response.read_some():
                    pass

        async def by_aiohttp(body: bytes = body) -> None:
            async with session.post(url, data=body, headers=headers) as response:
                while await response.content.readany():
                    pass

        clients |= {"ours": (by_ours, calls), "aiohttp": (by_aiohttp, calls)}
        clients |= {
            "ours, chunk": (lambda: by_ours(stream), CHUNKS),
            "aiohttp, chunk": (lambda: by_aiohttp(stream), CHUNKS),
        }
        with contextlib.suppress(ImportError):
            from pyreqwest.client import ClientBuilder  # type: ignore[import-not-found, unused-ignore]

            rust = await stack.enter_async_context(ClientBuilder().build())

            async def by_pyreqwest(body: bytes = body) -> None:
                async with rust.post(str(url)).headers(headers).body_bytes(body).build_streamed() as response:
                    while await response.body_reader.read_chunk():
                        pass

            clients |= {"pyreqwest": (by_pyreqwest, calls), "pyreqwest, chunk": (lambda: by_pyreqwest(stream), CHUNKS)}
        for _ in range(rounds + 1):
            for name, (call, per) in clients.items():
                before = time.process_time()
                for _ in range(per if per == calls else 1):
                    await call()
                spent.setdefault(name, []).append((time.process_time() - before) / per * 1e6)
    return {name: figures[1:] for name, figures in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=400)
    given = parser.parse_args()
    port = free_port()
    with started(str(HERE / "upstream.py"), str(port), port=port):
        for name, figures in uvloop.run(measure(port, given.rounds, given.calls)).items():
            print(f"{name}: {median(figures):.2f} µs of CPU time")


if __name__ == "__main__":
    main()
