"""The account of one request: what is measured, logged and traced of it, and how that is written down at its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from gateway.api.translation import Translation
from gateway.errors import ApiError
from gateway.media.headers import ImageHeader
from gateway.telemetry.logs import write_line
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Trace
from gateway.tenants.limits import Tenant


class EngineCall:
    """One call to an engine, made in a `with` block. Times are in seconds after the request's head.

    headers: for the engine, whose request this is; answered: when the answer's head was there; outcome: "ok" or a
    reason, as in `lensmith_rejections_total`.
    """

    __slots__ = ("_arrived", "_trace", "answered", "ended", "engine", "headers", "outcome", "started")

    def __init__(self, engine: str, arrived: float, trace: Trace, request_id: str) -> None:
        self._arrived = arrived
        self._trace = trace
        self.engine = engine
        self.headers = {"x-request-id": request_id, **trace.call_engine(engine)}
        self.started = time.monotonic() - arrived
        self.answered: float | None = None
        self.ended = 0.0
        self.outcome = "ok"

    def __enter__(self) -> EngineCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ApiError):
            self.outcome = error.reason
        elif isinstance(error, asyncio.CancelledError):
            self.outcome = "aborted"
        elif isinstance(error, Exception):
            self.outcome = "internal_error"
        self.ended = time.monotonic() - self._arrived
        self._trace.called_engine(self.outcome)


@dataclass
class Call:
    """Filled in step by step while the request is served."""

    request_id: str
    path: str
    tenant: Tenant | None = None
    trace: Trace = field(default_factory=Trace)
    translation: Translation | None = None  # of a request of another API
    started: float = field(default_factory=time.monotonic)
    model: str = "unknown"
    stream: bool = False
    images: list[ImageHeader] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    events: int = 0  # of a stream, sent so far
    prompt_estimate: int = 0  # tokens, for answers that end before the engine says
    answering: bool = False  # a stream's status has been sent
    status: int = 200
    reason: str = ""
    bytes_held: int = 0
    steps: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (start, end), as `EngineCall.started`
    attempts: list[EngineCall] = field(default_factory=list)
    first_token: float | None = None  # as `EngineCall.started`

    @property
    def tokens(self) -> int:
        """For the key's limit. Of an answer that was broken off, an estimate: the prompt's, and an event sent for each
        token. Nothing counts before an engine has answered.
        """
        if self.usage:
            return self.prompt_tokens + self.generation_tokens
        answered = any(attempt.answered is not None for attempt in self.attempts)
        return self.prompt_estimate + self.events if answered else 0

    @property
    def prompt_tokens(self) -> int:
        return _count(self.usage.get("prompt_tokens"))

    @property
    def generation_tokens(self) -> int:
        return _count(self.usage.get("completion_tokens"))

    @property
    def outcome(self) -> str:
        return self.reason or "ok"

    def since(self) -> float:
        """Seconds since the request's head."""
        return time.monotonic() - self.started

    def record(self, step: str, started: float) -> float:
        """Record that a step which began at `started` has ended now; its duration in seconds."""
        now = self.since()
        self.steps[step] = started, now
        return now - started

    def attempt(self, engine: str) -> EngineCall:
        """Accounts for what is done in its block, which calls this engine."""
        attempt = EngineCall(engine, self.started, self.trace, self.request_id)
        self.attempts.append(attempt)
        return attempt

    def line(self) -> dict[str, Any]:
        """What the log says of this request in one line, never its content."""
        steps = {f"{name}_seconds": round(end - start, 4) for name, (start, end) in self.steps.items()}
        if self.attempts:
            steps["engine_seconds"] = round(sum(attempt.ended - attempt.started for attempt in self.attempts), 4)
        return {
            "time": round(time.time(), 3),
            "request_id": self.request_id,
            "trace_id": self.trace.trace_id,
            "path": self.path,
            "key": None if self.tenant is None else self.tenant.name,
            "model": self.model,
            "engine": self.attempts[-1].engine if self.attempts else None,
            "attempts": len(self.attempts),
            "status": self.status,
            "outcome": self.outcome,
            "stream": self.stream,
            "images": len(self.images),
            "pixels": sum(image.pixels for image in self.images),
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            **steps,
            "first_token_seconds": None if self.first_token is None else round(self.first_token, 4),
            "seconds": round(self.since(), 4),
        }

    def attributes(self) -> dict[str, Any]:
        """Span attributes of a request, by the names of OpenTelemetry's conventions for HTTP and generative AI.

        https://github.com/open-telemetry/semantic-conventions-genai
        """
        found: dict[str, Any] = {
            "http.request.method": "POST",
            "url.path": self.path,
            "http.response.status_code": self.status,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": self.model,
            "gen_ai.request.stream": self.stream,
            "gen_ai.usage.input_tokens": self.prompt_tokens,
            "gen_ai.usage.output_tokens": self.generation_tokens,
            "lensmith.request_id": self.request_id,
            "lensmith.images": len(self.images),
            "lensmith.pixels": sum(image.pixels for image in self.images),
        }
        if self.tenant is not None:
            found["lensmith.key"] = self.tenant.name
        if self.first_token is not None:
            found["gen_ai.response.time_to_first_chunk"] = self.first_token
        if self.reason:
            found["error.type"] = self.reason
        return found


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def account(call: Call, metrics: Metrics) -> None:
    child = metrics.child
    child(metrics.requests, call.model, str(call.status)).inc()
    child(metrics.request_seconds, call.model).observe(call.since())
    if call.reason:
        child(metrics.rejections, call.reason).inc()
    if call.first_token is not None:
        child(metrics.first_token_seconds, call.model).observe(call.first_token)
    child(metrics.prompt_tokens, call.model).inc(call.prompt_tokens)
    child(metrics.generation_tokens, call.model).inc(call.generation_tokens)
    for attempt in call.attempts:
        child(metrics.upstream_requests, attempt.engine, attempt.outcome).inc()
        child(metrics.upstream_seconds, attempt.engine).observe(attempt.ended - attempt.started)
        if attempt.answered is not None:
            child(metrics.upstream_first_byte, attempt.engine).observe(attempt.answered - attempt.started)
    call.trace.end(call.steps, call.attributes, call.reason if call.status >= 500 else "")
    write_line(call.line())
