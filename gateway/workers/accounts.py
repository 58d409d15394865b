"""The accounts of keys for all workers: requests and tokens a minute, requests at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.tenants.account import Standing
from gateway.tenants.limits import Bucket

Limits = tuple[int, int, int]  # requests and tokens a minute, requests at a time; 0 for none


@dataclass
class KeyAccount:
    limits: Limits = (0, 0, 0)
    requests: Bucket = field(default_factory=lambda: Bucket(0, time.monotonic))
    tokens: Bucket = field(default_factory=lambda: Bucket(0, time.monotonic))
    running: int = 0


class KeyAccounts:
    """Accounts by the keys' hashes. A lease is a worker's number and one of its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, KeyAccount] = {}
        self._leases: dict[str, tuple[int, KeyAccount]] = {}

    def enter(self, worker: int, lease: str, sha256: str, limits: Limits) -> Standing:
        account = self._accounts.get(sha256)
        if account is None:
            account = self._accounts[sha256] = KeyAccount()
        if account.limits != limits:  # the key is new, or its line in the file is another
            account.limits = limits
            account.requests, account.tokens = (Bucket(limit, self._clock) for limit in limits[:2])
        refused, wait = self._refusal(account)
        if not refused:
            account.requests.use(1)
            account.running += 1
            self._leases[lease] = worker, account
        return Standing(refused, wait, account.requests.level, account.tokens.level, lease)

    def _refusal(self, account: KeyAccount) -> tuple[str, float]:
        for what, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            wait = bucket.wait(1)
            if wait > 0:
                return what, wait
        most = account.limits[2]
        return ("concurrency", 1.0) if most and account.running >= most else ("", 0.0)

    def leave(self, lease: str, tokens: int) -> None:
        found = self._leases.pop(lease, None)
        if found is not None:
            found[1].running -= 1
            found[1].tokens.use(tokens)

    def lost(self, worker: int) -> None:
        """A worker died: its requests are over."""
        for lease in [lease for lease, (of, _) in self._leases.items() if of == worker]:
            self.leave(lease, 0)
