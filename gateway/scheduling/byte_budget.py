"""How many bytes of request bodies and fetched images the gateway holds at once."""

from __future__ import annotations

from gateway.errors import ApiError


class ByteBudget:
    """The bytes of all request bodies the gateway holds at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reserved = 0

    def reserve(self, size: int) -> None:
        """Raises ApiError 503 when there is no room."""
        if self.reserved + size > self._limit:
            raise no_room()
        self.reserved += size

    def release(self, size: int) -> None:
        self.reserved -= size


def no_room() -> ApiError:
    return ApiError(503, "Too many large requests at once.", code="bytes_in_flight", retry_after=5)
