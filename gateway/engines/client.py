"""The call to an engine: the bytes we checked go out, its answer comes back, every way to fail becomes an ApiError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from yarl import URL

from gateway.errors import ApiError, engine_lost, normalise
from gateway.http.client import Client
from gateway.http.client_protocol import CallFailed, NotConnected, Response, Silent

# Most bytes of a whole answer, or of an error, that we hold.
ANSWER_LIMIT = 64 * 1024 * 1024


@asynccontextmanager
async def post(
    client: Client, url: URL, body: bytes, key: str | None, headers: Mapping[str, str], resend: bool = False
) -> AsyncIterator[Response]:
    """Send `body` and give the answer, whose status is 200; leaving early closes the connection, which aborts the work.

    `resend`: as in `Client.post`; without it, the caller has another engine to ask.

    Raises ApiError for every other status and for every way a connection can fail, here and inside the `with` block.
    """
    sent = {"content-type": "application/json", **headers}
    if key:
        sent["authorization"] = f"Bearer {key}"
    try:
        async with client.post(url, sent, body, resend) as response:
            if response.status != 200:
                raise normalise(response.status, await read_all(response), response.headers.get("retry-after"))
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                message = "The engine, or a proxy before it, compressed its answer without being asked to."
                raise ApiError(502, message, code="engine_error")
            yield response
    except NotConnected:
        message = "The engine does not accept connections."
        raise engine_lost(503, message, "engine_unavailable", unreachable=True, retry_after=5) from None
    except Silent:
        message = "The engine did not answer in time."
        raise engine_lost(504, message, "engine_timeout", retryable=False, unreachable=True) from None
    except CallFailed:
        raise engine_lost(502, "The engine broke off the connection.") from None


async def read_all(response: Response) -> bytes:
    """The whole answer. Raises ApiError 502 beyond ANSWER_LIMIT, and CallFailed."""
    pieces, size = [], 0
    while piece := await response.read_some():
        size += len(piece)
        if size > ANSWER_LIMIT:
            raise ApiError(502, "The engine's answer is too long.", code="engine_error")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
