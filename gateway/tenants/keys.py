"""API keys: a file of hashes and limits, and the tenants who hold them.

A key is 256 random bits, so that its plain SHA-256 is a safe thing to store: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gateway.config.schema import ConfigError
from gateway.telemetry.metrics import Metrics
from gateway.tenants.account import Account
from gateway.tenants.limits import Key, Tenant
from modelfiles.folder.atomic_write import write_atomically


def key_ring(keys: Path | None, redis: str | None, metrics: Metrics) -> KeyRing | None:
    """The keys that clients need; None lets everybody in. Raises KeyFileError or ConfigError."""
    if keys is None:
        return None
    if redis is None:
        return KeyRing(keys)
    try:
        from gateway.tenants.shared_limits import SharedLimits
    except ModuleNotFoundError:
        raise ConfigError("redis needs the package of that name: pip install 'lensmith[redis]'", ("redis",)) from None
    try:
        return KeyRing(keys, SharedLimits(redis, metrics))
    except ValueError:
        message = "redis must be the URL of a Redis, such as redis://127.0.0.1:6379."
        raise ConfigError(message, ("redis",)) from None


LOG = logging.getLogger("lensmith.keys")
PREFIX = "sk-lensmith-"
# Seconds between two checks of the file for changes; a revoked key works at most this much longer.
REFRESH_SECONDS = 1.0


class KeyFileError(Exception):
    """The file can't be used; the message is one sentence for the operator."""


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
    """Write the whole file or nothing, readable by its owner only. Raises OSError."""
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"
    write_atomically(path, text.encode(), mode=0o600)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes whenever the file does, also where it is a link to another one, as in a mounted Secret."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


class KeyRing:
    """The tenants of a key file. It is read again when it changes; accounts of unchanged keys go on."""

    def __init__(self, path: Path, shared: Account | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises KeyFileError. `shared`: where several gateways keep one account of each key."""
        self._path = path
        self._shared = shared
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._stamp: tuple[int, int] | None = None
        self._refresh_at = 0.0
        self._read()

    def _read(self) -> None:
        self._refresh_at = self._clock() + REFRESH_SECONDS
        stamp = _stamp(self._path)
        if stamp is not None and stamp == self._stamp:
            return
        found = {key.sha256: Tenant(key, self._clock, self._shared) for key in read_keys(self._path)}
        old, self._tenants = self._tenants, found
        for sha256, tenant in old.items():
            if sha256 in self._tenants and self._tenants[sha256].key == tenant.key:
                self._tenants[sha256] = tenant
        self._stamp = stamp

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()

    def find(self, secret: str) -> Tenant | None:
        """The tenant whose key this is. A file that became unreadable keeps the keys it last had."""
        if self._clock() >= self._refresh_at:
            try:
                self._read()
            except KeyFileError as error:
                LOG.error("%s", error)
        hashed = digest(secret)
        tenant = self._tenants.get(hashed)
        # The lookup compares hashes of what the caller sent, which tells nothing about those stored.
        return tenant if tenant is not None and hmac.compare_digest(tenant.key.sha256, hashed) else None
