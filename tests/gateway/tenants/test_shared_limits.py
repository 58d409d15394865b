"""Limits that several gateways share, in a real Redis that comes and goes."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gateway.telemetry.metrics import Metrics
from gateway.tenants.account import Standing
from gateway.tenants.limits import Key, Tenant
from gateway.tenants.shared_limits import SharedLimits
from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask

REDIS = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(REDIS is None, reason="needs redis-server: apt-get install redis-server")


class Redis:
    """A Redis at a port of its own, without a file."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        assert REDIS is not None
        argv = [REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        until("Redis answers", self.answers)

    def answers(self) -> bool:
        import redis

        try:
            return bool(redis.Redis(port=self.port).ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    found = Redis()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def pair(engine: Process, server: Redis, key_file: Path, add: Callable[..., str]) -> Iterator[list[Process]]:
    """Two gateways with the same keys and the same Redis."""
    add("first")
    options = ("--engine", engine.url, "--keys", str(key_file))
    with (
        lensmith_serve(*options, "--redis", server.url) as one,
        lensmith_serve(*options, LENSMITH_REDIS=server.url) as other,
    ):
        for gateway in (one, other):
            gateway.wait_until("/ready", 200)
        yield [one, other]


def chat(gateway: Process, secret: str, text: str = "count 5") -> httpx.Response:
    body = {"model": "fake", "messages": ask(text)}
    return httpx.post(gateway.url + CHAT, json=body, headers={"authorization": f"Bearer {secret}"}, timeout=60)


def working(pair: list[Process], secret: str) -> None:
    headers = {"authorization": f"Bearer {secret}"}
    for gateway in pair:
        until("the key works", lambda at=gateway: httpx.get(at.url + "/v1/models", headers=headers).status_code == 200)


def up(gateway: Process, secret: str) -> bool:
    text = httpx.get(gateway.url + "/metrics", headers={"authorization": f"Bearer {secret}"}).text
    return "lensmith_shared_limits_up 1.0" in text


def test_requests_a_minute_are_counted_together(pair: list[Process], add: Callable[..., str]) -> None:
    secret = add("slow", "--requests-per-minute", "4")
    working(pair, secret)
    answers = [chat(pair[at % 2], secret) for at in range(6)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["3", "2", "1", "0", "0", "0"]
    assert 1 <= int(answers[4].headers["retry-after"]) <= 15
    assert answers[4].json()["error"]["code"] == "rate_limit_exceeded"


def test_tokens_a_minute_are_counted_together(pair: list[Process], add: Callable[..., str]) -> None:
    secret = add("small", "--tokens-per-minute", "20")
    working(pair, secret)
    # 12 tokens each. They are counted in the background, so the third may just come before the count of the second.
    assert chat(pair[0], secret).status_code == 200
    until("both know", lambda: chat(pair[1], secret).status_code == 429)
    assert chat(pair[0], secret).status_code == 429


def test_requests_at_a_time_are_counted_together(pair: list[Process], add: Callable[..., str]) -> None:
    secret = add("single", "--concurrency", "1")
    working(pair, secret)
    body = {"model": "fake", "messages": ask("count 1000 0.1"), "stream": True}
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.stream("POST", pair[0].url + CHAT, json=body, headers=headers, timeout=60) as running:
        assert running.status_code == 200
        refused = chat(pair[1], secret)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "concurrency_limit")
    until("the place is free", lambda: chat(pair[1], secret).status_code == 200)


def test_while_redis_is_away_each_gateway_counts_by_itself(
    pair: list[Process], server: Redis, add: Callable[..., str]
) -> None:
    secret = add("robust", "--requests-per-minute", "3")
    working(pair, secret)
    assert [chat(pair[0], secret).status_code for _ in range(2)] == [200, 200]
    server.kill()
    # The first gateway goes on from what it knew, the second from its own full account.
    assert [chat(pair[0], secret).status_code for _ in range(2)] == [200, 429]
    assert [chat(pair[1], secret).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert not up(pair[0], secret)
    assert "Redis cannot be used; each gateway keeps the limits by itself." in pair[0].log()
    server.start()
    fresh = add("fresh", "--requests-per-minute", "2")
    working(pair, fresh)

    def shared() -> bool:
        chat(pair[0], secret)
        chat(pair[1], secret)
        return up(pair[0], secret) and up(pair[1], secret)

    until("both share again", shared)
    assert [chat(pair[at % 2], fresh).status_code for at in range(3)] == [200, 200, 429]
    assert "Redis is back" in pair[0].log()
    assert "Traceback" not in pair[0].log() + pair[1].log()


LIMITED = Key("k", "5" * 64, "", requests_per_minute=10)


def test_no_more_than_the_limit_gets_through_at_once(server: Redis) -> None:
    async def main() -> None:
        shared = [SharedLimits(server.url, Metrics()) for _ in range(3)]
        tenants = [Tenant(LIMITED, shared=each) for each in shared]
        entered = await asyncio.gather(*(tenants[at % 3].enter() for at in range(60)), return_exceptions=True)
        assert sum(not isinstance(outcome, BaseException) for outcome in entered) == 10
        for each in shared:
            await each.close()

    asyncio.run(main())


def test_what_a_dead_gateway_held_is_given_back_and_what_a_live_one_holds_is_not(server: Redis) -> None:
    async def main() -> None:
        dead, live, other = (SharedLimits(server.url, Metrics(), lease_seconds=2) for _ in range(3))

        async def enter(limits: SharedLimits) -> Standing:
            standing = await limits.enter("d" * 64, (0, 0, 2))
            assert standing is not None
            return standing

        assert not (await enter(dead)).refused
        held = await enter(live)
        assert not held.refused
        assert (await enter(other)).refused == "concurrency"
        await dead.close()  # without giving back
        for _ in range(100):  # until the lease of the dead one ends
            if not (standing := await enter(other)).refused:
                break
            await asyncio.sleep(0.1)
        assert not standing.refused
        assert (await enter(other)).refused == "concurrency"
        live.release("d" * 64, held.lease, 0, 0)
        await live.close()
        assert not (await enter(other)).refused
        await other.close()

    asyncio.run(main())


def test_buckets_fill_again_and_accounts_are_forgotten(server: Redis) -> None:
    import redis

    async def main() -> None:
        limits = SharedLimits(server.url, Metrics())
        key, rates = "f" * 64, (600, 60_000, 0)
        first = await limits.enter(key, rates)
        assert first is not None
        assert (first.requests, first.tokens) == (599, 60_000)
        limits.release(key, first.lease, rates[1], 90_000)
        await limits.close()
        limits = SharedLimits(server.url, Metrics())
        second = await limits.enter(key, rates)
        assert second is not None
        assert second.refused == "tokens"
        assert 20 < second.wait <= 30  # 30,000 below, 1,000 a second
        await limits.close()

    asyncio.run(main())
    store = redis.Redis(port=server.port)
    assert all(0 < store.ttl(key) <= 121 for key in store.keys("*"))
    assert store.keys("lensmith:*")


def test_mistakes_are_told_in_a_sentence(key_file: Path) -> None:
    argv = [sys.executable, "-c", "import lensmith; lensmith.main()", "serve", "--engine", "http://127.0.0.1:1"]
    done = subprocess.run(
        [*argv, "--keys", str(key_file), "--redis", "http://x"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "redis must be the URL of a Redis" in done.stderr
    assert "Traceback" not in done.stderr
