"""HTTP for the embedded engine: its key, bodies, disconnects, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ApiError, bad_request

MAX_BODY_BYTES = 512 * 1024 * 1024
T = TypeVar("T")


class RequireKey:
    """Answers 401 to everything but /health without `Authorization: Bearer KEY`, if there is a key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.expected = f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.expected is not None and scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                error = ApiError(401, "The engine's key is missing or wrong.", code="invalid_api_key")
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Cancels `work` and raises ClientDisconnect if the client disconnects first."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(
        request.receive()
    )  # the body has been read, so all that can come is a disconnect
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        disconnect.cancel()


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ApiError 413 above MAX_BODY_BYTES."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body has more than {MAX_BODY_BYTES} bytes.", code="request_too_large")
    return bytes(body)


def decode_json(body: bytes) -> object:
    """Raises ApiError 400."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise bad_request("The body is not valid JSON.", None, "invalid_json") from None


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


async def api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return error_response(
        ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}", code=code)
    )


async def client_disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's status for it; nobody reads it


async def unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "The engine failed on this request; its log says why.", code="engine_error"))
