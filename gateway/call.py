"""The account of one request: what is measured and logged of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from gateway.images import ImageHeader
from gateway.limits import Tenant
from gateway.translation import Translation


@dataclass
class Call:
    """Filled in step by step while the request is served."""

    request_id: str
    tenant: Tenant | None = None
    translation: Translation | None = None  # of a request of another API
    started: float = field(default_factory=time.monotonic)
    model: str = "unknown"
    stream: bool = False
    images: list[ImageHeader] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    answering: bool = False  # a stream's status has been sent
    status: int = 200
    reason: str = ""
    bytes_held: int = 0
    received: float | None = None  # seconds after `started`, as the next two
    called: float | None = None
    first_token: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return _count(self.usage.get("prompt_tokens"))

    @property
    def generation_tokens(self) -> int:
        return _count(self.usage.get("completion_tokens"))

    def since(self) -> float:
        """Seconds since the request's head."""
        return time.monotonic() - self.started

    def line(self) -> dict[str, Any]:
        """What the log says of this request: one JSON line, never its content."""
        return {
            "time": round(time.time(), 3),
            "request_id": self.request_id,
            "key": None if self.tenant is None else self.tenant.name,
            "model": self.model,
            "status": self.status,
            "reason": self.reason or None,
            "stream": self.stream,
            "images": len(self.images),
            "pixels": sum(image.pixels for image in self.images),
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "receive_seconds": _rounded(self.received),
            "called_seconds": _rounded(self.called),
            "first_token_seconds": _rounded(self.first_token),
            "seconds": _rounded(self.since()),
        }


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
