"""W3C trace context, taken over from the client and passed on to the engine; OpenTelemetry spans where configured.

Without the extra `otel`, or without an endpoint to send spans to, a request's `traceparent` is passed on as it came.
The variables are OpenTelemetry's own, https://opentelemetry.io/docs/languages/sdk-configuration/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Scope

from gateway.http.respond import header

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE_LIMIT = 512

Steps = Mapping[str, tuple[float, float]]
Attributes = Callable[[], Mapping[str, Any]]


def incoming(scope: Scope) -> dict[str, str]:
    """The client's `traceparent` and `tracestate`; empty if there is no valid one."""
    given = header(scope, b"traceparent")
    if given is None:
        return {}
    parent = given.decode("latin-1")
    if TRACEPARENT.fullmatch(parent) is None:
        return {}
    found = {"traceparent": parent}
    state = header(scope, b"tracestate")
    if state is not None and len(state) <= TRACESTATE_LIMIT and state.isascii() and state.decode().isprintable():
        found["tracestate"] = state.decode()
    return found


class Trace:
    """The trace context of one request: passed on, nothing recorded."""

    def __init__(self, carrier: dict[str, str] | None = None) -> None:
        self.carrier = carrier or {}

    @property
    def trace_id(self) -> str | None:
        return self.carrier["traceparent"][3:35] if self.carrier else None

    def call_engine(self, engine: str) -> dict[str, str]:
        """The headers for a call to an engine that begins now."""
        return self.carrier

    def called_engine(self, outcome: str) -> None:
        """The call is over."""

    def end(self, steps: Steps, attributes: Attributes, failure: str) -> None:
        """The request is over.

        steps: name -> (start, end) in seconds after the request's head; attributes: gives those of the request's span;
        failure: why the server failed it, or empty.
        """


class Tracing:
    """Makes the trace of each request. Records nothing; `OtelTracing` does."""

    def begin(self, scope: Scope) -> Trace:
        return Trace(incoming(scope))

    def close(self) -> None:
        """Send what was not sent yet."""
