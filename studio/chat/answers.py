"""An answer as it comes from the engine: its text, who made it by the engine's own word, its tokens and times."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from studio.chat.conversation import Question
from studio.jobs.job import Job
from studio.jobs.serving import health_of, url_of
from studio.jobs.store import Jobs

MAX_EVENT = 1 << 20  # bytes of a line of the stream
SILENCE = 600.0  # seconds without a byte

Event = dict[str, Any]


def maker_of(job: Job, side: str, chunk: Event) -> Event:
    """Who made an answer, as the engine reports it beside its first piece.

    model: the name it answered under; weights: its `system_fingerprint`, the folder's name and, with an adapter, the
    beginning of the adapter's sha256; "" from an engine that does not say. right: whether that is who was asked.
    """
    about = job.spec.about
    model, weights = str(chunk.get("model") or ""), str(chunk.get("system_fingerprint") or "")
    digest = weights.rpartition("+")[2] if "+" in weights else ""
    expected = about["digest"] if side == "tuned" else ""
    right = model == about[side] and (not weights or digest == expected)
    return {"kind": "maker", "model": model, "weights": weights, "adapter": digest, "right": right}


async def answer(client: httpx.AsyncClient, jobs: Jobs, job: Job, question: Question) -> AsyncGenerator[Event, None]:
    """Events of one answer: "maker", "text"s, and "end" with tokens and seconds, or "error" with a sentence.

    first: seconds to the first text; total: to the end; rate: tokens a second after the first.
    """
    about = job.spec.about
    if not about[question.side]:
        yield {"kind": "error", "key": "chat.no_adapter", "message": "", "lines": []}
        return
    begun = time.monotonic()
    first: float | None = None
    usage: Event = {}
    reason = None
    told = False
    try:
        async with client.stream(
            "POST",
            f"{url_of(job)}/v1/chat/completions",
            json=question.as_request(about[question.side]),
            timeout=httpx.Timeout(SILENCE, connect=5),
        ) as response:
            if response.status_code != 200:
                yield _refused(await response.aread())
                return
            async with aclosing(_events(response)) as events:
                async for chunk in events:
                    if "error" in chunk:
                        yield _refused(json.dumps(chunk).encode())
                        return
                    if not told:
                        told = True
                        yield maker_of(job, question.side, chunk)
                    usage = chunk.get("usage") or usage
                    for choice in chunk.get("choices") or []:
                        reason = choice.get("finish_reason") or reason
                        text = choice.get("delta", {}).get("content")
                        if text:
                            first = first or time.monotonic() - begun
                            yield {"kind": "text", "text": text}
    except (httpx.HTTPError, ValueError):
        yield await _broken(client, jobs, job)
        return
    total = time.monotonic() - begun
    tokens = usage.get("completion_tokens")
    rate = (tokens - 1) / (total - first) if tokens and tokens > 1 and first and total > first else None
    yield {
        "kind": "end",
        "prompt_tokens": usage.get("prompt_tokens"),
        "tokens": tokens,
        "first": first,
        "total": total,
        "rate": rate,
        "cut": reason == "length",
    }


async def _events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    """The stream's JSON objects. Raises ValueError for a stream that is none."""
    async for line in response.aiter_lines():
        if len(line) > MAX_EVENT:
            raise ValueError("an event is too long")
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            chunk = json.loads(data)
            if not isinstance(chunk, dict):
                raise ValueError("an event is no object")
            yield chunk


def _refused(body: bytes) -> Event:
    """The gateway's own sentence."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:300].decode("utf-8", "replace")
    return {"kind": "error", "key": "", "message": message, "lines": []}


async def _broken(client: httpx.AsyncClient, jobs: Jobs, job: Job) -> Event:
    """The connection broke: what became of the engine, with the last lines of its output."""
    health = await health_of(client, jobs.get(job.id))
    key = "chat.unloaded" if health.phase in ("stopped", "stopping") else "chat.crashed"
    return {"kind": "error", "key": key, "message": health.message, "lines": list(health.lines)}
