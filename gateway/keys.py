"""API keys: a file of hashes and limits, and the accounts that are kept against them.

A key is 256 random bits, so that its plain SHA-256 is a safe thing to store: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gateway.errors import ApiError

PREFIX = "sk-lensmith-"
# How often the file is looked at again, in seconds: so long does a revoked key live.
LOOK_AGAIN = 1.0


class KeyFileError(Exception):
    """The file can't be used; the message is one sentence for the operator."""


@dataclass(frozen=True)
class Key:
    """One line of the file. A limit of 0 is none; no models means all of them."""

    name: str
    sha256: str
    created: str
    models: list[str] = field(default_factory=list)
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The keys in a file written by `lensmith keys`. Raises KeyFileError."""
    try:
        rows = json.loads(path.read_text())["keys"]
        return [Key(**row) for row in rows]
    except FileNotFoundError:
        raise KeyFileError(f"{path} does not exist; make it with: lensmith keys add NAME --file {path}") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise KeyFileError(f"{path} is not a file of keys; make one with: lensmith keys add NAME --file FILE") from None


def write_keys(path: Path, keys: list[Key]) -> None:
    """Write the file at once or not at all, for the owner's eyes only."""
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


class Bucket:
    """A token bucket: `per_minute` may be used at once, and come back evenly over a minute. 0 is no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def wait(self, amount: float) -> float:
        """Seconds until `amount` can be used; 0 for now."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute) if self.per_minute else 0.0

    def use(self, amount: float) -> None:
        """May go below 0: what an answer costs is known only afterwards."""
        if self.per_minute:
            self._level = self.level - amount


class Tenant:
    """Whoever holds one key: its limits and what it used of them. In memory, so of this process only."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = key
        self.name = key.name
        self._requests = Bucket(key.requests_per_minute, clock)
        self._tokens = Bucket(key.tokens_per_minute, clock)
        self._running = 0

    def may_use(self, model: str) -> bool:
        return not self.key.models or model in self.key.models

    def enter(self) -> None:
        """Count one request. Raises ApiError 429."""
        limits = (("requests", self._requests), ("tokens", self._tokens))
        for what, bucket in limits:
            # For tokens a little is enough: what the answer will cost is not known yet.
            wait = bucket.wait(1)
            if wait > 0:
                message = f"Rate limit of {bucket.per_minute} {what} a minute reached for the key '{self.name}'."
                raise ApiError(
                    429, message, code="rate_limit_exceeded", retry_after=math.ceil(wait), headers=self.headers()
                )
        if self.key.concurrency and self._running >= self.key.concurrency:
            message = f"The key '{self.name}' may have {self.key.concurrency} requests at a time."
            raise ApiError(429, message, code="concurrency_limit", retry_after=1, headers=self.headers())
        self._requests.use(1)
        self._running += 1

    def leave(self, tokens: int) -> None:
        self._running -= 1
        self._tokens.use(tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers for the limits that there are."""
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket.per_minute:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{what}"] = f"{bucket.wait(bucket.per_minute):.3f}s"
        return found


class KeyRing:
    """The tenants of a key file. It is read again when it changes; accounts of unchanged keys go on."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises KeyFileError."""
        self._path = path
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._stamp = 0
        self._look_at = 0.0
        self._read()

    def _read(self) -> None:
        self._look_at = self._clock() + LOOK_AGAIN
        stamp = self._path.stat().st_mtime_ns if self._path.exists() else 0
        if stamp == self._stamp != 0:
            return
        old, self._tenants = self._tenants, {key.sha256: Tenant(key, self._clock) for key in read_keys(self._path)}
        for sha256, known in old.items():
            if sha256 in self._tenants and self._tenants[sha256].key == known.key:
                self._tenants[sha256] = known
        self._stamp = stamp

    def find(self, secret: str) -> Tenant | None:
        """The tenant whose key this is. A file that became unreadable keeps the keys it last had."""
        if self._clock() >= self._look_at:
            try:
                self._read()
            except KeyFileError as error:
                print(f"lensmith: {error}", file=sys.stderr, flush=True)
        hashed = digest(secret)
        tenant = self._tenants.get(hashed)
        # The lookup compares hashes of what the caller sent, which tells nothing about those stored.
        return tenant if tenant is not None and hmac.compare_digest(tenant.key.sha256, hashed) else None
