"""The first request an engine gets: a picture, and an answer that shows whether its numbers are sound.

A model whose numbers overflow in 16 bit still answers: with the token of id 0 for ever, "!" in Qwen's tokenizer.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson
from yarl import URL

LOG = logging.getLogger("lensmith.smoke_test")

SIDE = 64  # pixels
TOKENS = 16


def test_picture() -> str:
    """A `data:` URI of a PNG: a red and a blue half."""
    row = b"\0" + b"\xe0\x20\x20" * (SIDE // 2) + b"\x20\x20\xe0" * (SIDE // 2)
    parts = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * SIDE)),
        (b"IEND", b""),
    ):
        parts += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return "data:image/png;base64," + base64.b64encode(parts).decode()


def smoke_test_request(model: str, picture: bool) -> dict[str, Any]:
    """A greedy chat completion about the picture, with the probabilities of its tokens."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "Which colours are there?"}]
    if picture:
        content.insert(0, {"type": "image_url", "image_url": {"url": test_picture()}})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 1,
    }


class SmokeTestFailed(Exception):
    """The engine's answer shows that it does not work; the message says what was wrong with it, after 'its answer'."""


async def fetch_answer(
    session: aiohttp.ClientSession, url: URL, key: str | None, body: dict[str, Any], seconds: float
) -> Any:
    """The engine's answer as JSON. Raises SmokeTestFailed, also for what is no answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        async with session.post(
            url / "v1/chat/completions",
            data=orjson.dumps(body),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            answer = await response.read()
    except asyncio.TimeoutError:
        raise SmokeTestFailed(f"took longer than {seconds:g} s") from None
    except (aiohttp.ClientError, OSError):
        raise SmokeTestFailed("never came: it broke off the connection") from None
    if response.status != 200:
        raise SmokeTestFailed(f"was HTTP {response.status}: {answer[:300].decode('utf-8', 'replace')}")
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise SmokeTestFailed("was not valid JSON") from None


SmokeTestAnswer = tuple[str, list[float]]
# Far above what rounding makes of the same computation, far below what a trained adapter does.
SAME_LOGPROB = 1e-3


def is_same_answer(one: SmokeTestAnswer, other: SmokeTestAnswer) -> bool:
    """Whether both answers are the same model's."""
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return False
    return all(abs(a - b) < SAME_LOGPROB for a, b in zip(one[1], other[1], strict=True))


def check_smoke_test(answer: Any) -> SmokeTestAnswer:
    """The answer's text and its tokens' log-probabilities. Raises SmokeTestFailed."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text = message["content"] or message.get("reasoning_content") or message.get("reasoning") or ""
        entries = (choice.get("logprobs") or {}).get("content") or []
        numbers = [entry["logprob"] for entry in entries]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise SmokeTestFailed("was not a chat completion") from None
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise SmokeTestFailed("had probabilities that are not numbers")
    if not text.strip():
        raise SmokeTestFailed("was empty")
    if len(text.strip()) > 3 and set(text.strip()) == {"!"}:
        raise SmokeTestFailed(f"was {text.strip()!r}, as of a model whose numbers overflow")
    return text, [float(number) for number in numbers]


async def run_smoke_test(
    session: aiohttp.ClientSession,
    url: URL,
    key: str | None,
    names: Sequence[str],
    picture: bool,
    seconds: float,
) -> list[str]:
    """Of the names an engine knows, the model and its adapters, those that work: an adapter must change something.

    Raises SmokeTestFailed if the model itself doesn't work.
    """
    model, *adapters = names

    async def tried(name: str) -> SmokeTestAnswer:
        body = smoke_test_request(name, picture)
        return check_smoke_test(await fetch_answer(session, url, key, body, seconds))

    own = await tried(model)
    working = [model]
    for adapter in adapters:
        try:
            if is_same_answer(await tried(adapter), own):
                raise SmokeTestFailed("is the model's own: it changes nothing")
            working.append(adapter)
        except SmokeTestFailed as error:
            LOG.warning("%s is not served: its answer to a test picture %s.", adapter, error)
    return working
