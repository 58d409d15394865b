"""Writes answers at the level of ASGI: plain bytes, JSON and errors."""

from __future__ import annotations

from starlette.types import Scope, Send

from gateway.errors import ApiError


def header(scope: Scope, name: bytes) -> bytes | None:
    """A request header's first value; `name` in lower case."""
    found: dict[bytes, bytes] | None = scope.get("lensmith.headers")
    if found is None:
        found = scope["lensmith.headers"] = dict(reversed(scope["headers"]))  # of several with one name the first stays
    return found.get(name)


JSON_TYPE = (b"content-type", b"application/json")


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def respond_error(scope: Scope, send: Send, error: ApiError) -> None:
    headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()]
    await respond(send, error.status, error_body(scope, error), [JSON_TYPE, *headers])


def error_body(scope: Scope, error: ApiError) -> bytes:
    """OpenAI's envelope; on Ollama's and Anthropic's routes the one that their clients read."""
    if scope["path"].startswith("/api/"):
        return error.ollama_body()
    return error.anthropic_body() if scope["path"].startswith("/v1/messages") else error.body()
