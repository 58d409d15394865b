"""What the call to an engine costs: `gateway.engines.client` on aiohttp, and the least that httptools could do.

    python -m benchmarks.gateway.engine_client [--rounds 9] [--calls 400]

CPU time of this process for a call with a 100 KB JPEG to a fake engine, in turns. httptools' side is a sketch without
timeouts, limits, a pool or errors: a lower bound and no client.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import cast

import httptools
import uvloop
from yarl import URL

from benchmarks.gateway.bench import HERE, picture, request, started
from gateway.engines.client import new_session, post, read_all
from modelfiles.hardware.python_child import free_port


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
    """Microseconds of CPU time a call, by client, one figure a round."""
    body = request(image=picture(100_000)).split(b"\r\n\r\n", 1)[1]
    url = URL(f"http://127.0.0.1:{port}/v1/chat/completions")
    head = (
        f"POST {url.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    session = new_session(60)
    _, bare = await asyncio.get_running_loop().create_connection(Bare, "127.0.0.1", port)

    async def by_aiohttp() -> None:
        async with post(session, url, body, None, {}) as answer:
            await read_all(answer)

    async def by_httptools() -> None:
        await bare.call(head.encode(), body)

    clients: dict[str, Callable[[], Awaitable[None]]] = {"aiohttp": by_aiohttp, "httptools": by_httptools}
    spent: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(rounds):
        for name, call in clients.items():
            before = time.process_time()
            for _ in range(calls):
                await call()
            spent[name].append((time.process_time() - before) / calls * 1e6)
    await session.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=400)
    given = parser.parse_args()
    port = free_port()
    with started(str(HERE / "upstream.py"), str(port), port=port):
        for name, figures in uvloop.run(measure(port, given.rounds, given.calls)).items():
            print(f"{name}: {median(figures):.0f} µs of CPU time a call")


if __name__ == "__main__":
    main()
