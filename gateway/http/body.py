"""Reads a request's body within its limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope

from gateway.errors import ApiError
from gateway.http.disconnect import ClientGone
from gateway.http.respond import header
from gateway.http.timers import Timers, timers_of


async def read_body(
    scope: Scope,
    receive: Receive,
    limit: int,
    seconds: float,
    hold: Callable[[int], None],
    timers: Timers | None = None,
) -> bytes:
    """The request's JSON body, counted while it comes in, so that no Content-Length has to be believed.

    `hold` is told the size of each part before it is kept, and may raise.

    Raises ApiError 413 beyond `limit` bytes, 408 if it takes more than `seconds`, 415 for another content type, and
    ClientGone.
    """
    content_type = header(scope, b"content-type")
    if scope["path"].startswith("/api/") and header(scope, b"origin") is None:
        content_type = None  # Ollama takes JSON of any type, as of a bare curl; a web page's has to be asked for (CORS)
    if content_type is not None and b"json" not in content_type.split(b";")[0].lower():
        raise ApiError(415, "The content-type must be application/json.", code="unsupported_media_type")
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise ApiError(415, "Compressed request bodies are not supported.", code="unsupported_media_type")
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    late = Deadline(seconds, timers)
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            hold(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except asyncio.CancelledError:
        if not late.passed:
            raise
        raise ApiError(408, f"The request body did not come within {seconds:g} s.", code="request_timeout") from None
    finally:
        late.stop()


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request body is larger than {limit} bytes.", code="request_too_large")


class Deadline:
    """Cancels the current task after some seconds; `passed` tells that cancellation from others.

    A timer instead of `asyncio.wait_for`, which makes a task of every single receive.
    """

    def __init__(self, seconds: float, timers: Timers | None = None) -> None:
        timers = timers or timers_of(asyncio.get_running_loop())
        self.passed = False
        self._task = timers.current_task()
        self._timer = timers.call_later(seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        assert self._task is not None
        self._task.cancel()

    def stop(self) -> None:
        self._timer.cancel()
