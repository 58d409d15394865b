"""A key's tokens a minute where the engine does not count them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, picture

LIMIT = 20_000  # 333 come back a second


@pytest.fixture(scope="module")
def guarded(engine: Process, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, dict[str, str]]]:
    secret = add("counted", "--tokens-per-minute", str(LIMIT))
    with lensmith_serve("--engine", engine.url, "--keys", str(key_file)) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, {"authorization": f"Bearer {secret}"}


def left(guarded: tuple[Process, dict[str, str]]) -> int:
    gateway, key = guarded
    return int(httpx.get(gateway.url + "/v1/models", headers=key).headers["x-ratelimit-remaining-tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_usage_costs_about_what_it_holds(
    guarded: tuple[Process, dict[str, str]], stream: bool
) -> None:
    gateway, key = guarded
    before = left(guarded)
    body = {"model": "fake", "messages": ask("count 1000 0 " + "word " * 4000), "user": "uncounted", "stream": stream}
    assert httpx.post(gateway.url + CHAT, json=body, headers=key, timeout=30).status_code == 200
    spent = until("it is counted", lambda: before - left(guarded))
    assert 4000 < spent < 8000  # a prompt of 20,000 characters and 1000 short tokens


def test_images_without_usage_cost_their_size(guarded: tuple[Process, dict[str, str]]) -> None:
    gateway, key = guarded
    before = left(guarded)
    image = {"type": "image_url", "image_url": {"url": picture("JPEG", (1024, 1024))}}
    content = [{"type": "text", "text": "count 1"}, image]
    body = {"model": "fake", "messages": [{"role": "user", "content": content}], "user": "uncounted"}
    assert httpx.post(gateway.url + CHAT, json=body, headers=key, timeout=30).status_code == 200
    assert 700 < until("it is counted", lambda: before - left(guarded)) < 2000


def test_what_no_engine_answered_costs_nothing(guarded: tuple[Process, dict[str, str]]) -> None:
    gateway, key = guarded
    before = left(guarded)
    body = {"model": "fake", "messages": ask("fault status 400 " + "word " * 4000)}
    assert httpx.post(gateway.url + CHAT, json=body, headers=key, timeout=30).status_code == 400
    assert left(guarded) >= before
