"""One request and what was seen of its answer."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import orjson

OK = "ok"


class Record(NamedTuple):
    """Times in seconds by the machine's monotonic clock.

    outcome: OK, an HTTP status, or what went wrong; start: when the request was due; first: when the first text came,
    None if none did or the answer was not streamed; gaps: between one piece of text and the next; tokens: of the
    answer, as the server's usage says, else its pieces.
    """

    outcome: str
    start: float
    end: float
    first: float | None = None
    gaps: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0


async def ask(session: aiohttp.ClientSession, url: str, body: bytes, due: float) -> Record:
    """Send `body` and read the whole answer. Never raises for what a server does wrong."""
    try:
        async with session.post(url, data=body) as answer:
            if answer.status != 200:
                await answer.read()
                return failed(str(answer.status), due)
            if answer.content_type == "text/event-stream":
                return await read_stream(answer, due)
            fields = orjson.loads(await answer.read())
            fields["choices"][0]["message"]
            return Record(OK, due, time.monotonic(), None, (), *counts(fields.get("usage") or {}))
    except asyncio.TimeoutError:
        return failed("timeout", due)
    except aiohttp.ClientConnectorError:
        return failed("no connection", due)
    except (aiohttp.ClientError, OSError):
        return failed("broken connection", due)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError):
        return failed("not OpenAI's format", due)


async def read_stream(answer: aiohttp.ClientResponse, due: float) -> Record:
    """The record of a stream of server-sent events."""
    rest, done = b"", False
    times: list[float] = []
    usage: dict[str, Any] = {}
    async for chunk in answer.content.iter_any():
        now = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            event = orjson.loads(data)
            if "error" in event:
                return failed("error in the stream", due)
            usage = event.get("usage") or usage
            if any(has_text(choice["delta"]) for choice in event["choices"]):
                times.append(now)
    if not done:
        return failed("stream cut short", due)
    tokens, prompt_tokens = counts(usage)
    gaps = tuple(after - before for before, after in pairwise(times))
    first = times[0] if times else None
    return Record(OK, due, time.monotonic(), first, gaps, tokens or len(times), prompt_tokens)


def has_text(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def counts(usage: dict[str, Any]) -> tuple[int, int]:
    return int(usage.get("completion_tokens") or 0), int(usage.get("prompt_tokens") or 0)


def failed(outcome: str, due: float) -> Record:
    return Record(outcome, due, time.monotonic())
