"""POST /v1/chat/completions, a step after the other: receive, parse, check the images, call the engine, account."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from gateway.asgi import JSON_TYPE, ClientGone, UntilDisconnect, read_body, respond, respond_error
from gateway.engine import Engine
from gateway.errors import ApiError
from gateway.images import ImageHeader, check_images
from gateway.metrics import Metrics
from gateway.relay import Relay, usage_of
from gateway.schema import ChatRequest, check_chat, parse_json
from gateway.settings import Settings
from gateway.sse import EventTooLong, error_event
from gateway.upstream import post, read_all

PATH = "v1/chat/completions"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise collect the events
]
CLIENT_GONE = 499  # nginx's status for it; never sent, only counted
# How long we wait for the end of an engine's answer after [DONE], to use its connection again.
TAIL_SECONDS = 0.25


@dataclass
class Gateway:
    """What the routes share."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    session: aiohttp.ClientSession
    running: int = 0


@dataclass
class Call:
    """One request's account."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    model: str = "unknown"
    stream: bool = False
    images: list[ImageHeader] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    reason: str = ""
    received: float | None = None  # seconds after `started`, as the next one
    first_token: float | None = None

    def since(self) -> float:
        return time.monotonic() - self.started


class ChatCompletions:
    """The ASGI endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["request_id"])
        try:
            await self._serve(call, scope, receive, send)
        except ApiError as error:
            call.status, call.reason = error.status, error.reason
            if call.first_token is None:
                await respond_error(send, error)
            else:
                await send({"type": "http.response.body", "body": error_event(error)})
        except ClientGone:
            call.status, call.reason = CLIENT_GONE, "client_gone"
        except BaseException:
            call.status, call.reason = 500, "internal_error"
            raise
        finally:
            self._account(call)

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        body = await read_body(scope, receive, gateway.settings.max_body_bytes, gateway.settings.body_timeout)
        call.received = call.since()
        request = self._check(call, body)
        del body
        if request.stream:
            # To count tokens; the relay takes the usage out again if the client didn't ask for it.
            options = request.body.get("stream_options") or {}
            request.body["stream_options"] = {**options, "include_usage": True}
        # Written anew, never passed on as it came: what the engine reads is what was checked, without duplicate keys.
        payload = orjson.dumps(request.body)
        request.body.clear()
        engine = gateway.engine
        async with (
            UntilDisconnect(receive) as watch,
            self._running(),
            post(gateway.session, engine.url / PATH, payload, engine.key, call.request_id) as response,
        ):
            if request.stream:
                await self._stream(call, request, response, watch, send)
            else:
                answer = await read_all(response)
                call.usage = usage_of(answer)
                watch.stop()
                await respond(send, 200, answer, [JSON_TYPE])

    def _check(self, call: Call, body: bytes) -> ChatRequest:
        """Everything that can be said about a request before an engine sees it. Raises ApiError."""
        engine, metrics = self._gateway.engine, self._gateway.metrics
        request = check_chat(parse_json(body), engine.spec)
        call.stream = request.stream
        if request.model not in engine.models:
            raise ApiError(
                404,
                "There is no such model; GET /v1/models lists those there are.",
                code="model_not_found",
                param="model",
            )
        call.model = request.model
        call.images = check_images(request.images, self._gateway.settings)
        metrics.images.observe(len(call.images))
        for image in call.images:
            metrics.image_pixels.observe(image.pixels)
        if not engine.ready:
            raise ApiError(503, engine.reason, code="engine_unavailable", retry_after=engine.retry_after)
        return request

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        gateway = self._gateway
        gateway.running += 1
        gateway.metrics.running.set(gateway.running)
        gateway.metrics.batch_size.observe(gateway.running)
        try:
            yield
        finally:
            gateway.running -= 1
            gateway.metrics.running.set(gateway.running)

    async def _stream(
        self, call: Call, request: ChatRequest, response: aiohttp.ClientResponse, watch: UntilDisconnect, send: Send
    ) -> None:
        if response.content_type != "text/event-stream":
            usage_of(await read_all(response))  # an error answered with status 200 is the likely cause
            raise ApiError(502, "The engine answered a stream request without a stream.", code="engine_error")
        relay = Relay(request.include_usage)
        gaps = self._gateway.metrics.gap_seconds.labels(call.model)
        last = 0.0
        while True:
            data = await response.content.readany()
            try:
                events = relay.feed(data)
            except EventTooLong:
                raise ApiError(502, "The engine sent an endless event.", code="engine_error") from None
            call.usage = relay.usage
            now = call.since()
            if events:
                if call.first_token is None:
                    # Only now is the status decided: what fails before is answered with an HTTP error.
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                    call.first_token = now
                else:
                    gaps.observe(now - last)
                last = now
                if relay.done:
                    watch.stop()
                await send({"type": "http.response.body", "body": events, "more_body": not relay.done})
            if relay.done:
                break
            if relay.error is not None:
                raise relay.error
            if not data:
                raise ApiError(502, "The engine's answer ended before it was complete.", code="engine_error")
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read_all(response), TAIL_SECONDS)

    def _account(self, call: Call) -> None:
        metrics, seconds = self._gateway.metrics, call.since()
        metrics.requests.labels(call.model, str(call.status)).inc()
        metrics.request_seconds.labels(call.model).observe(seconds)
        if call.reason:
            metrics.rejections.labels(call.reason).inc()
        if call.received is not None:
            metrics.receive_seconds.observe(call.received)
        if call.first_token is not None:
            metrics.first_token_seconds.labels(call.model).observe(call.first_token)
        prompt, generated = (_count(call.usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        metrics.prompt_tokens.labels(call.model).inc(prompt)
        metrics.generation_tokens.labels(call.model).inc(generated)
        # One JSON line a request, never with its content. Not through `logging`, which costs more than all of the abo
        line = {
            "time": round(time.time(), 3),
            "request_id": call.request_id,
            "model": call.model,
            "status": call.status,
            "reason": call.reason or None,
            "stream": call.stream,
            "images": len(call.images),
            "pixels": sum(image.pixels for image in call.images),
            "prompt_tokens": prompt,
            "generation_tokens": generated,
            "receive_seconds": _rounded(call.received),
            "first_token_seconds": _rounded(call.first_token),
            "seconds": _rounded(seconds),
        }
        sys.stderr.write(orjson.dumps(line).decode() + "\n")


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
