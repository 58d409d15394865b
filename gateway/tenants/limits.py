"""What the holder of a key may use: requests and tokens a minute, requests at a time, models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from gateway.errors import ApiError
from gateway.tenants.account import Account
from modelfiles import counted


@dataclass(frozen=True)
class Key:
    """One line of the key file. A limit of 0 is none; no models means all of them."""

    name: str
    sha256: str
    created: str
    models: list[str] = field(default_factory=list)
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


class Bucket:
    """A token bucket: `per_minute` may be used at once, and come back evenly over a minute. 0 is no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._updated = clock()

    @property
    def level(self) -> float:
        """May be below 0: what an answer costs is known only afterwards."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._updated) * self.per_minute / 60)
        self._updated = now
        return self._level

    @level.setter
    def level(self, level: float) -> None:
        self._level, self._updated = level, self._clock()

    def wait(self, amount: float) -> float:
        """Seconds until `amount` can be used; 0 for now."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute) if self.per_minute else 0.0

    def use(self, amount: float) -> None:
        if self.per_minute:
            self.level -= amount


class Tenant:
    """Whoever holds one key, and what it used of its limits.

    With `shared`, the account is kept there for several gateways, and here only a copy: it is what counts while the
    shared one can't be reached.
    """

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic, shared: Account | None = None) -> None:
        self.key = key
        self.name = key.name
        limited = key.requests_per_minute or key.tokens_per_minute or key.concurrency
        self._shared = shared if limited else None
        self._requests = Bucket(key.requests_per_minute, clock)
        self._tokens = Bucket(key.tokens_per_minute, clock)
        self._running = 0

    def may_use(self, model: str) -> bool:
        return not self.key.models or model in self.key.models

    async def enter(self) -> Callable[[int], None]:
        """Count one request. Raises ApiError 429.

        Returns what is to be called when the request is over, with the tokens it used.
        """
        release = None
        if self._shared is not None:
            release = await self._enter_shared(self._shared)
        if release is None:
            self._enter_local()
            release = self._release
        self._running += 1
        return release

    def _enter_local(self) -> None:
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            # For tokens a little is enough: what the answer will cost is not known yet.
            wait = bucket.wait(1)
            if wait > 0:
                raise self._refusal(what, wait)
        if self.key.concurrency and self._running >= self.key.concurrency:
            raise self._refusal("concurrency", 1)
        self._requests.use(1)

    async def _enter_shared(self, shared: Account) -> Callable[[int], None] | None:
        key = self.key
        limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrency)
        standing = await shared.enter(key.sha256, limits)
        if standing is None:
            return None
        self._requests.level, self._tokens.level = standing.requests, standing.tokens
        if standing.refused:
            raise self._refusal(standing.refused, standing.wait)
        return partial(self._release_shared, shared, standing.lease)

    def _release(self, tokens: int) -> None:
        self._running -= 1
        self._tokens.use(tokens)

    def _release_shared(self, shared: Account, lease: str, tokens: int) -> None:
        self._release(tokens)
        shared.release(self.key.sha256, lease, self.key.tokens_per_minute, tokens)

    def _refusal(self, what: str, wait: float) -> ApiError:
        """The error for the limit that is reached; `wait` is in seconds."""
        if what == "concurrency":
            message, code = f"may have {counted(self.key.concurrency, 'request')} at a time", "concurrency_limit"
        else:
            limit = self.key.requests_per_minute if what == "requests" else self.key.tokens_per_minute
            message, code = f"has reached its limit of {limit} {what} a minute", "rate_limit_exceeded"
        message = f"The key '{self.name}' {message}."
        return ApiError(429, message, code=code, retry_after=math.ceil(wait), headers=self.headers())

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers for the limits that there are."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket.per_minute:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait(bucket.per_minute):.3f}s"
        return found
