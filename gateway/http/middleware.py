"""ASGI middleware: request ids, HEAD, the fast path to the data routes, the management port's own application."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.respond import header


class ByPort:
    """Sends what comes in at the management port to the application `management`, and everything else on."""

    def __init__(self, app: ASGIApp, management: ASGIApp, port: int) -> None:
        self._app = app
        self._management = management
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inside = scope["type"] == "http" and scope["server"][1] == self._port  # the socket's own port, not a header's
        await (self._management if inside else self._app)(scope, receive, send)


class Below:
    """Sends what is below `prefix` ("/studio") to another application, and everything else on.

    That application sees to keys, errors and methods itself. The prefix alone leads to the prefix with a slash.
    """

    def __init__(self, app: ASGIApp, prefix: str, mounted: ASGIApp) -> None:
        self._app = app
        self._prefix = prefix
        self._mounted = mounted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == self._prefix:
            headers = [
                (b"location", self._prefix.lstrip("/").encode() + b"/")
            ]  # relative: a proxy may have a prefix too
            await send({"type": "http.response.start", "status": 307, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        elif path.startswith(self._prefix + "/"):
            root = scope.get("root_path", "") + self._prefix
            await self._mounted({**scope, "root_path": root}, receive, send)
        else:
            await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD wherever GET is: the same head, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


# An id we take over from the caller: short, printable, nothing that could break a log line or a header.
RANDOM = random.Random()  # an id is no secret, and the system's own randomness takes a call for each
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
        request_id = given if given and SANE_ID.fullmatch(given) else b"req-%024x" % RANDOM.getrandbits(96)
        scope["request_id"] = request_id.decode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Direct:
    """The fast path: a POST to one of `endpoints` (path -> ASGI application) goes straight there, all else to `app`.

    They are the applications of routes that `app` has too. FastAPI's layers around them (exception handlers, an exit
    stack, matching every route) take longer for a request than all checks of one without images.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope.get("method") == "POST" else None
        await (endpoint or self._app)(scope, receive, send)
