"""Where several gateways keep one account of each key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Standing:
    """Whether a request may run, and what its key has left of this minute."""

    refused: str  # requests, tokens or concurrency; empty if it may run
    wait: float  # seconds until it makes sense to try again
    requests: float
    tokens: float
    lease: str


class Account(Protocol):
    """Every Standing without `refused` must be followed by one `release`."""

    async def enter(self, sha256: str, limits: tuple[int, int, int]) -> Standing | None:
        """Count one request of a key; None while the account can't be reached.

        `limits` are requests and tokens a minute and requests at a time, 0 for none.
        """

    def release(self, sha256: str, lease: str, tokens_per_minute: int, tokens: int) -> None:
        """The request is over, and used so many tokens."""

    async def close(self) -> None:
        """Let go of what was needed to reach the account."""
