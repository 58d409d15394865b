"""ASGI middleware: request ids, the short way to the data routes, the management port's own application."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.respond import header


class ByPort:
    """Sends what comes in at the management port to the one application, and everything else to the other."""

    def __init__(self, management: ASGIApp, port: int, others: ASGIApp) -> None:
        self._management = management
        self._port = port
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inside = scope["type"] == "http" and scope["server"][1] == self._port  # the socket's own port, not a header's
        await (self._management if inside else self._others)(scope, receive, send)


# An id we take over from the caller: short, printable, nothing that could break a log line or a header.
SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """Middleware: `x-request-id` on every answer, the caller's if it is sane; handlers read `scope["request_id"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given and SANE_ID.fullmatch(given) else b"req-" + secrets.token_hex(12).encode()
        scope["request_id"] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Direct:
    """Sends a POST to one of `endpoints` (path -> ASGI endpoint) straight there, everything else to `app`.

    FastAPI's own layers take longer for a request than all checks of one without images.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope.get("method") == "POST" else None
        await (endpoint or self._app)(scope, receive, send)
