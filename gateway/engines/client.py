"""The call to an engine: the bytes we checked go out, its answer comes back, every way to fail becomes an ApiError."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from yarl import URL

from gateway.errors import ApiError, engine_lost, normalise
from gateway.http.client import Call, Client
from gateway.http.client_protocol import CallFailed, NotConnected, Response, Silent

# Most bytes of a whole answer, or of an error, that we hold.
ANSWER_LIMIT = 64 * 1024 * 1024


def post(
    client: Client, url: URL, body: bytes, key: str | None, headers: Mapping[str, str], resend: bool = False
) -> EnginePost:
    """`async with post(…) as response:` sends `body` and gives the answer, whose status is 200.

    Leaving the block early closes the connection, which aborts the work. `resend`: as in `Client.post`; without it, the
    caller has another engine to ask.

    Raises ApiError for every other status and for every way a connection can fail, here and inside the block.
    """
    sent = {"content-type": "application/json", **headers}
    if key:
        sent["authorization"] = f"Bearer {key}"
    return EnginePost(client.post(url, sent, body, resend))


class EnginePost:
    """See `post`. Not a generator, which costs a tenth of the call as a context manager."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __aenter__(self) -> Response:
        try:
            response = await self._call.__aenter__()
            if response.status == 200 and "content-encoding" not in response.headers:
                return response
            try:
                await _check(response)
            except BaseException:
                self._call.end()
                raise
            return response
        except CallFailed as failure:
            raise _explained(failure) from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.end()
        if isinstance(error, CallFailed):
            raise _explained(error) from None


async def _check(response: Response) -> None:
    """Raises ApiError for an answer that is not for the client, and CallFailed."""
    if response.status != 200:
        raise normalise(response.status, await read_all(response), response.headers.get("retry-after"))
    if response.headers["content-encoding"].lower() != "identity":
        message = "The engine, or a proxy before it, compressed its answer without being asked to."
        raise ApiError(502, message, code="engine_error")


def _explained(failure: CallFailed) -> ApiError:
    if isinstance(failure, NotConnected):
        message = "The engine does not accept connections."
        return engine_lost(503, message, "engine_unavailable", unreachable=True, retry_after=5)
    if isinstance(failure, Silent):
        message = "The engine did not answer in time."
        return engine_lost(504, message, "engine_timeout", retryable=False, unreachable=True)
    return engine_lost(502, "The engine broke off the connection.")


async def read_all(response: Response) -> bytes:
    """The whole answer. Raises ApiError 502 beyond ANSWER_LIMIT, and CallFailed."""
    pieces, size = [], 0
    while piece := await response.read_some():
        size += len(piece)
        if size > ANSWER_LIMIT:
            raise ApiError(502, "The engine's answer is too long.", code="engine_error")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
