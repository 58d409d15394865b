"""How many bytes of request bodies and fetched images the gateway holds at once."""

from __future__ import annotations

from gateway.errors import ApiError


class ByteBudget:
    """The bytes of all request bodies the gateway holds at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Raises ApiError 503 when there is no room."""
        if self.held + size > self._limit:
            raise ApiError(503, "Too many large requests at once.", code="bytes_in_flight", retry_after=5)
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size
