"""What every request passes: the Host header, response headers, the session, the token against forged requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.errors import StudioError
from studio.security.access import Access
from studio.security.hosts import Hosts
from studio.security.sessions import MAX_AGE, Sessions

COOKIE = "lensmith_studio"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PUBLIC = ("static/", "login")  # what may be seen without a session
Refuse = Callable[[Request, StudioError], Awaitable[Response]]
MAX_FORM = 1 << 20  # bytes of a plain form, in which the token may be a field
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


class ResponseHeaders:
    """The headers that keep a page's content from loading or running anything of another origin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Guard:
    """Lets requests through that have a session; of the others `refuse` makes the answer.

    `scope["session"]` is the session's text, which templates need for the token of forms; "" on public pages without
    one.
    """

    def __init__(self, app: ASGIApp, access: Access, sessions: Sessions, hosts: Hosts, refuse: Refuse) -> None:
        self._app, self._access, self._sessions, self._hosts, self._refuse = app, access, sessions, hosts, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["session"] = ""
            try:
                receive = await self._check(scope, receive)
            except StudioError as error:
                answer = await self._refuse(Request(scope), error)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        """Raises StudioError; gives `receive`, or what stands for it if the body had to be read."""
        headers = Headers(scope=scope)
        if not self._hosts.allows(headers.get("host", "")):
            raise StudioError("errors.host", status=421, host=headers.get("host", "")[:100])
        session, path = self._session(scope), route_path(scope)
        if not session and not path.startswith(PUBLIC):
            raise StudioError("errors.login", status=401)
        scope["session"] = session
        if scope["method"] not in SAFE:
            if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise StudioError("errors.forged", status=403)
            if path != "login":
                return await self._check_token(headers, receive, session)
        return receive

    def _session(self, scope: Scope) -> str:
        if self._access.kind == "none":
            return self._sessions.fixed("anybody")  # without a cookie: nobody is told apart
        session = HTTPConnection(scope).cookies.get(COOKIE, "")
        holder = self._sessions.holder(session)
        return session if holder is not None and self._access.holds(holder) else ""

    async def _check_token(self, headers: Headers, receive: Receive, session: str) -> Receive:
        """The header, or the field `csrf` of a plain form, whose body is then given on as it came."""
        token = headers.get("x-csrf-token", "")
        if not token and headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            body, more = b"", True
            while more and len(body) <= MAX_FORM:
                message = await receive()
                body += message.get("body", b"")
                more = message["type"] == "http.request" and message.get("more_body", False)
            token = parse_qs(body.decode("latin-1")).get("csrf", [""])[0]
            sent = False
            rest = receive

            async def replay() -> Message:
                nonlocal sent
                if sent:
                    return await rest()
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}

            receive = replay
        if not self._sessions.csrf_is_good(session, token):
            raise StudioError("errors.forged", status=403)
        return receive


def cookie(session: str, max_age: int = MAX_AGE) -> str:
    """The Set-Cookie header's value. Without a path it is sent for the folder of the login page and all below it."""
    return f"{COOKIE}={session}; HttpOnly; SameSite=Lax; Max-Age={max_age}"


def route_path(scope: Scope) -> str:
    """The path below the studio's root, without the slash at its beginning."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(root):
        path = path[len(root) :]
    return path.lstrip("/")
