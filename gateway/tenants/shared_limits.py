"""Keys' limits in Redis, so that several gateways keep one account of a key.

The account of a key is a hash with two token buckets (`requests`, `tokens`: what is left, and since when) and a sorted
set of leases, one for each request that runs: its gateway renews it, and one that died lets it expire. Every read
and change is one script, so no other gateway comes in between. The clock is Redis's own. A missing bucket is full.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import redis.asyncio
from prometheus_client import Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.telemetry.metrics import Metrics
from gateway.tenants.account import Account, Standing

LOG = logging.getLogger("lensmith.redis")

# A gateway waits this long for Redis, and then answers by itself for a while: limits must not cost availability.
TIMEOUT = 0.5
RETRY = 1.0
CONNECTIONS = 32
LEASE = 30.0

# KEYS: the hash, the sorted set.
COMMON = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function left(name, limit)
  local saved = redis.call('HMGET', KEYS[1], name, name .. '_at')
  if not saved[1] then return limit end
  return math.min(limit, saved[1] + math.max(0, now - saved[2]) * limit / 60)
end
local function save(name, limit, level)
  redis.call('HSET', KEYS[1], name, string.format('%.6f', level), name .. '_at', string.format('%.6f', now))
  local full = math.ceil((limit - level) * 60 / limit) + 1
  if full > redis.call('TTL', KEYS[1]) then redis.call('EXPIRE', KEYS[1], full) end
end
"""
# ARGV: limits of requests and tokens a minute and of requests at a time, the lease's name and its seconds.
ENTER = """
local per_minute, tokens_per_minute, max_running = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local requests, tokens = left('requests', per_minute), left('tokens', tokens_per_minute)
local refused, wait = '', 0
if per_minute > 0 and requests < 1 then
  refused, wait = 'requests', (1 - requests) * 60 / per_minute
elseif tokens_per_minute > 0 and tokens < 1 then
  refused, wait = 'tokens', (1 - tokens) * 60 / tokens_per_minute
elseif max_running > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= max_running then
    refused, wait = 'concurrency', 1
  else
    redis.call('ZADD', KEYS[2], string.format('%.6f', now + ARGV[5]), ARGV[4])
    redis.call('EXPIRE', KEYS[2], math.ceil(ARGV[5]))
  end
end
if refused == '' and per_minute > 0 then
  requests = requests - 1
  save('requests', per_minute, requests)
end
return {refused, string.format('%.6f', wait), string.format('%.6f', requests), string.format('%.6f', tokens)}
"""
# ARGV: the limit of tokens a minute, the tokens used, the lease's name.
RELEASE = """
local limit = tonumber(ARGV[1])
if limit > 0 then save('tokens', limit, left('tokens', limit) - ARGV[2]) end
redis.call('ZREM', KEYS[2], ARGV[3])
"""
# ARGV: a lease's seconds and its name. One that was lost, as by a restart of Redis, is there again.
RENEW = """
redis.call('ZADD', KEYS[2], string.format('%.6f', now + ARGV[1]), ARGV[2])
redis.call('EXPIRE', KEYS[2], math.ceil(ARGV[1]))
"""


class SharedLimits(Account):
    """`enter` and `release` in Redis. While it can't be reached, `enter` returns None."""

    def __init__(self, url: str, metrics: Metrics, lease_seconds: float = LEASE) -> None:
        """Raises ValueError for a URL that isn't one of Redis."""
        self._pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._redis = redis.asyncio.Redis.from_pool(self._pool)
        self._enter_script = self._redis.register_script(COMMON + ENTER)
        self._release_script = self._redis.register_script(COMMON + RELEASE)
        self._renew_script = self._redis.register_script(COMMON + RENEW)
        self._lease_seconds = lease_seconds
        self._leases: dict[str, str] = {}  # name -> the key's hash
        self._up = Gauge(
            "lensmith_shared_limits_up",
            "1 while Redis keeps the keys' limits; 0 while each gateway does by itself.",
            registry=metrics.registry,
            multiprocess_mode="livemin",
        )
        self._up.set(1)
        self._unreachable = False
        self._retry_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewal: asyncio.Task[None] | None = None

    async def enter(self, sha256: str, limits: tuple[int, int, int]) -> Standing | None:
        """Count one request of a key; `limits` are requests and tokens a minute and requests at a time, 0 for none.

        Every Standing without `refused` must be followed by one `release`.
        """
        loop = asyncio.get_running_loop()
        if self._renewal is None:
            self._renewal = loop.create_task(self._renew_leases())
        if self._unreachable and loop.time() < self._retry_at:
            return None
        lease = secrets.token_hex(8)
        reply = await self._run(self._enter_script, sha256, [*limits, lease, self._lease_seconds])
        if reply is None:
            return None
        refused, wait, requests, tokens = reply
        if not refused and limits[2]:
            self._leases[lease] = sha256
        return Standing(refused, float(wait), float(requests), float(tokens), lease)

    def release(self, sha256: str, lease: str, tokens_per_minute: int, tokens: int) -> None:
        """Give the lease back and count the tokens, in the background: nobody waits for it."""
        if self._leases.pop(lease, None) is None and not tokens_per_minute:
            return
        task = asyncio.create_task(self._release_lease(sha256, [tokens_per_minute, tokens, lease]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release_lease(self, sha256: str, arguments: list[Any]) -> None:
        await self._run(self._release_script, sha256, arguments)

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _renew_leases(self) -> None:
        """Renew the leases, and see whether Redis is back."""
        while True:
            await asyncio.sleep(RETRY if self._unreachable else self._lease_seconds / 3)
            for lease, sha256 in list(self._leases.items()):
                if lease in self._leases:
                    await self._run(self._renew_script, sha256, [self._lease_seconds, lease])
                if self._unreachable:
                    break

    async def _run(self, script: Any, sha256: str, arguments: list[Any]) -> Any:
        """The script's reply; None when Redis can't be reached."""
        account = f"lensmith:{{{sha256[:32]}}}"  # the braces keep both on one node of a cluster
        try:
            reply = await script(keys=[account, account + ":leases"], args=arguments)
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            self._retry_at = asyncio.get_running_loop().time() + RETRY
            if not self._unreachable:
                LOG.warning("Redis cannot be used; each gateway keeps the limits by itself. (%s)", error)
                await self._pool.disconnect(inuse_connections=False)  # the others would fail one by one
            self._unreachable = True
            self._up.set(0)
            return None
        if self._unreachable:
            LOG.info("Redis is back; limits are shared again.")
        self._unreachable = False
        self._up.set(1)
        return reply
