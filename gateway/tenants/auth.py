"""Middleware: who is asking? Everything but the two probes needs a key, if the gateway has a file of keys."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http.respond import header, respond_error
from gateway.telemetry.logs import log_refusal
from gateway.telemetry.metrics import Metrics
from gateway.tenants.keys import KeyRing

# For probes of an orchestrator, which have no key. They say nothing but whether the gateway lives and is ready.
OPEN = frozenset({"/", "/health", "/ready"})


def given_key(scope: Scope) -> str:
    """The key that came along: as OpenAI's clients send it, or Anthropic's (`x-api-key`), or Azure's (`api-key`)."""
    kind, _, secret = (header(scope, b"authorization") or b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    return (header(scope, b"x-api-key") or header(scope, b"api-key") or b"").decode("latin-1").strip()


class Authenticate:
    """Puts the key's Tenant into `scope["tenant"]`, and its `x-ratelimit-*` headers on the answer."""

    def __init__(self, app: ASGIApp, ring: KeyRing, metrics: Metrics) -> None:
        self._app = app
        self._ring = ring
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        secret = given_key(scope)
        tenant = self._ring.find(secret) if secret else None
        if tenant is None:
            self._metrics.requests.labels("unknown", "401").inc()
            self._metrics.rejections.labels("invalid_api_key").inc()
            log_refusal(scope, 401, "invalid_api_key")
            problem = "The API key is not valid." if secret else "An API key is needed: Authorization: Bearer <key>."
            headers = {"www-authenticate": "Bearer"}
            await respond_error(scope, send, ApiError(401, problem, code="invalid_api_key", headers=headers))
            return
        scope["tenant"] = tenant

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in tenant.headers().items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_with_limits)
