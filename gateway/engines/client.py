"""The call to an engine: the bytes we checked go out, its answer comes back, every way to fail becomes an ApiError."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
from yarl import URL

from gateway.errors import ApiError, engine_lost, normalise

# Whether the call in progress made a connection of its own, instead of taking an idle one.
CONNECTED: ContextVar[bool] = ContextVar("connected", default=False)
# Below the 5 s after which uvicorn closes an idle connection, so that a request is never put on one about to close.
KEEPALIVE_SECONDS = 4.0
CONNECT_SECONDS = 4.0
# Most bytes of a whole answer, or of an error, that we hold.
ANSWER_LIMIT = 64 * 1024 * 1024


class _Connector(aiohttp.TCPConnector):
    """Notes in CONNECTED that a call made a connection of its own, which aiohttp's tracing tells for 20 µs a call."""

    async def _create_connection(self, *args: Any) -> Any:
        CONNECTED.set(True)
        return await super()._create_connection(*args)


def new_session(silence: float) -> aiohttp.ClientSession:
    """A session for calls to engines. `silence`: seconds an engine may send nothing."""
    return _session(
        _Connector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
        aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence),
    )


def _session(connector: aiohttp.TCPConnector, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        trust_env=False,
    )


@asynccontextmanager
async def post(
    session: aiohttp.ClientSession,
    url: URL,
    body: bytes,
    key: str | None,
    headers: Mapping[str, str],
    resend: bool = False,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send `body` and give the answer, whose status is 200; leaving early closes the connection, which aborts the work.

    An engine may close an idle connection at the moment it is used again. With `resend`, what breaks such a connection
    before anything of an answer came is sent once more, on a new one; without, the caller has another engine to ask.

    Raises ApiError for every other status and for every way a connection can fail, here and inside the `with` block.
    """
    sent = {"content-type": "application/json", **headers}
    if key:
        sent["authorization"] = f"Bearer {key}"
    response, fresh = None, None
    CONNECTED.set(False)
    try:
        try:
            response = await session.post(url, data=body, headers=sent, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as broken:
            if not resend or CONNECTED.get() or isinstance(broken, aiohttp.ClientConnectorError):
                raise
            fresh = _session(aiohttp.TCPConnector(force_close=True), session.timeout)
            try:
                response = await fresh.post(url, data=body, headers=sent, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                raise broken from None  # it has died since, which is what the client should know
        if response.status != 200:
            raise normalise(response.status, await read_all(response), response.headers.get("retry-after"))
        yield response
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        message = "The engine does not accept connections."
        raise engine_lost(503, message, "engine_unavailable", unreachable=True, retry_after=5) from None
    except (aiohttp.ServerTimeoutError, asyncio.TimeoutError):
        message = "The engine did not answer in time."
        raise engine_lost(504, message, "engine_timeout", retryable=False, unreachable=True) from None
    except (aiohttp.ClientError, OSError):
        raise engine_lost(502, "The engine broke off the connection.") from None
    finally:
        if response is not None:
            # Back to the pool if the answer was read to its end, closed otherwise.
            response.release()
        if fresh is not None:
            await fresh.close()


async def read_all(response: aiohttp.ClientResponse) -> bytes:
    """The whole answer. Raises ApiError 502 beyond ANSWER_LIMIT."""
    chunks, size = [], 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > ANSWER_LIMIT:
            raise ApiError(502, "The engine's answer is too long.", code="engine_error")
        chunks.append(chunk)
    return b"".join(chunks)
