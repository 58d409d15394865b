"""Sends one request and records when each part of its answer came.

aiohttp, and not httpx or the `openai` client: what the client itself costs is part of every time it measures. In
docs/gateway-http-client.md httpx passed on a sixteenth of the chunks per second and took seven times the CPU time.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any, NamedTuple

import aiohttp
import orjson

OK = "ok"


class RequestRecord(NamedTuple):
    """Times in seconds by the machine's monotonic clock.

    outcome: OK, an HTTP status, or what went wrong; start: when the request was due; first: when the first text came,
    also of an answer that failed later, None if none did or it was not streamed; gaps: between one piece of text and
    the next; tokens: of the answer, as the server's usage says, else its pieces.
    """

    outcome: str
    start: float
    end: float
    first: float | None = None
    gaps: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0


async def ask(session: aiohttp.ClientSession, url: str, body: bytes, due: float) -> RequestRecord:
    """Send `body` and read the whole answer. Never raises for what a server does wrong."""
    times: list[float] = []  # when each piece of text came
    usage: dict[str, Any] = {}
    try:
        async with session.post(url, data=body) as answer:
            if answer.status != 200:
                await answer.read()
                outcome = str(answer.status)
            elif answer.content_type == "text/event-stream":
                outcome, usage = await read_stream(answer, times)
            else:
                fields = orjson.loads(await answer.read())
                fields["choices"][0]["message"]
                outcome, usage = OK, fields.get("usage") or {}
    except asyncio.TimeoutError:
        outcome = "timeout"
    except aiohttp.ClientConnectorError:
        outcome = "no connection"
    except (aiohttp.ClientError, OSError):
        outcome = "broken connection"
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError):
        outcome = "not OpenAI's format"
    gaps = tuple(after - before for before, after in pairwise(times))
    tokens, prompt_tokens = (int(usage.get(name) or 0) for name in ("completion_tokens", "prompt_tokens"))
    first = times[0] if times else None
    return RequestRecord(outcome, due, time.monotonic(), first, gaps, tokens or len(times), prompt_tokens)


async def read_stream(answer: aiohttp.ClientResponse, times: list[float]) -> tuple[str, dict[str, Any]]:
    """Read server-sent events to their end: the outcome and the usage. Notes in `times` when each text came."""
    rest, done = b"", False
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
                return "error in the stream", usage
            usage = event.get("usage") or usage
            if any(has_text(choice["delta"]) for choice in event["choices"]):
                times.append(now)
    return OK if done else "stream cut short", usage


def has_text(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
