"""The few ASGI pieces that every route shares: read a body, answer, see the client go, give each request an id."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ApiError

# An id we take over from the caller: short, printable, nothing that could break a log line or a header.
SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def header(scope: Scope, name: bytes) -> bytes | None:
    """A request header's first value; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


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


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float, hold: Callable[[int], None]) -> bytes:
    """The request's JSON body, counted while it comes in, so that no Content-Length has to be believed.

    `hold` is told the size of each part before it is kept, and may raise.

    Raises ApiError 413 beyond `limit` bytes, 408 if it takes more than `seconds`, 415 for another content type, and
    ClientGone.
    """
    content_type = header(scope, b"content-type")
    if content_type is not None and b"json" not in content_type.split(b";")[0].lower():
        raise ApiError(415, "The content-type must be application/json.", code="unsupported_media_type")
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise ApiError(415, "Compressed request bodies are not supported.", code="unsupported_media_type")
    too_large = ApiError(413, f"The request body is larger than {limit} bytes.", code="request_too_large")
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    late = Deadline(seconds)
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise too_large
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


class Deadline:
    """Cancels the current task after some seconds; `passed` tells that cancellation from others.

    A timer instead of `asyncio.wait_for`, which makes a task of every single receive.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        assert self._task is not None
        self._task.cancel()

    def stop(self) -> None:
        self._timer.cancel()


# A request that is answered sooner is spared the task that watches for its client's disconnect.
WATCH_AFTER = 0.02


class UntilDisconnect:
    """`async with UntilDisconnect(receive):` cancels its block and raises ClientGone when the client goes.

    Call `stop` before the answer's last byte: after it, a server reports a disconnect that isn't one.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def __aenter__(self) -> UntilDisconnect:
        self._task = asyncio.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start)
        return self

    def _start(self) -> None:
        self._watch = asyncio.create_task(self._wait())
        self._watch.add_done_callback(self._cancel)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _cancel(self, _: asyncio.Task[None]) -> None:
        assert self._task is not None
        self._task.cancel()

    def stop(self) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.remove_done_callback(self._cancel)
            self._watch.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gone = self._watch is not None and self._watch.done() and not self._watch.cancelled()
        self.stop()
        if gone and kind is asyncio.CancelledError:
            raise ClientGone from None


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
    """OpenAI's envelope; on Ollama's routes the one that its clients read."""
    return error.ollama_body() if scope["path"].startswith("/api/") else error.body()
