"""An engine's greedy answers with the log-probabilities of their tokens.

The answer is read as plain JSON and not by the `openai` client: what an engine gets wrong must become a sentence in the
report, and aiohttp is what the gateway is installed with.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from yarl import URL

from gateway.verify.cases import Case

AT_ONCE = 8
TOP = 5


@dataclass(frozen=True)
class Token:
    """A token of an answer: its bytes, its log-probability, and the likeliest tokens in its place with theirs."""

    text: bytes
    log_prob: float
    top: dict[bytes, float]


@dataclass(frozen=True)
class GreedyAnswer:
    """`tokens` is None where the engine gives no log-probabilities; `error` says why there is no answer."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: tuple[Token, ...] | None = None
    error: str = ""


async def ask_all(url: URL, key: str | None, model: str, cases: list[Case], max_tokens: int) -> list[GreedyAnswer]:
    """The engine's answer to each case, in order. An engine that refuses `logprobs` is asked without."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    slots = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def one(case: Case, log_probs: bool) -> GreedyAnswer:
            body: dict[str, Any] = {"model": model, "messages": case.messages, "max_tokens": max_tokens}
            body |= {"temperature": 0} | ({"logprobs": True, "top_logprobs": TOP} if log_probs else {})
            async with slots:
                return await ask(session, url / "v1/chat/completions", body)

        first = await one(cases[0], True)
        log_probs = not first.error.startswith("HTTP 4")
        return list(await asyncio.gather(*(one(case, log_probs) for case in cases)))


async def ask(session: aiohttp.ClientSession, url: URL, body: dict[str, Any]) -> GreedyAnswer:
    try:
        async with session.post(url, json=body) as response:
            raw = await response.read()
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        return GreedyAnswer(error=f"no answer ({type(error).__name__})")
    if response.status != 200:
        return GreedyAnswer(error=f"HTTP {response.status}: {raw[:200].decode('utf-8', 'replace')}")
    try:
        return read_answer(orjson.loads(raw))
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError, IndexError):
        return GreedyAnswer(error="the answer is not OpenAI's")


def read_answer(answer: dict[str, Any]) -> GreedyAnswer:
    """An OpenAI chat completion. Raises KeyError, TypeError, ValueError, … for anything else."""
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    entries = (choice.get("logprobs") or {}).get("content")
    tokens: list[Token] = []
    left = len(text.encode())
    for entry in entries or ():
        if left <= 0:  # the end token, which some engines list
            break
        top = {token_bytes(other): float(other["logprob"]) for other in entry.get("top_logprobs") or ()}
        tokens.append(Token(token_bytes(entry), float(entry["logprob"]), top))
        left -= len(tokens[-1].text)
    return GreedyAnswer(
        text, int((answer.get("usage") or {}).get("prompt_tokens") or 0), tuple(tokens) if entries is not None else None
    )


def token_bytes(entry: dict[str, Any]) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if given else str(entry["token"]).encode("utf-8", "replace")
