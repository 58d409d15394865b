"""The request path, a step after the other: receive, parse, check the images, call the engine, account.

Chat completions go through it as they are; requests of other APIs become chat completions first (`translation`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from gateway.account import account
from gateway.asgi import JSON_TYPE, ClientGone, Deadline, UntilDisconnect, header, read_body, respond, respond_error
from gateway.call import Call
from gateway.engines import EngineSpec
from gateway.errors import ApiError, crashed
from gateway.event_stream import KeepAlive, start_stream
from gateway.fetch import ImageFetcher
from gateway.image_pool import ImagePool, settle_images
from gateway.images import ImagePart, check_count, check_images
from gateway.metrics import Metrics
from gateway.models import Model, Models
from gateway.relay import Relay, read_completion
from gateway.schema import ChatRequest, check_chat, parse_json
from gateway.settings import Settings
from gateway.slots import ByteBudget, Slot
from gateway.sse import EventTooLong, error_event
from gateway.token_text import RawLogProbs
from gateway.tracing import Tracing
from gateway.translation import Object, Translation, rename, write_answer, write_events
from gateway.upstream import post, read_all

Translate = Callable[[Object], Translation]
Check = Callable[[Object, EngineSpec], ChatRequest]
CLIENT_GONE = 499  # nginx's status for it; never sent, only counted
# How long we wait for the end of an engine's answer after [DONE], to use its connection again.
TAIL_SECONDS = 0.25
MAX_TIMEOUT = 86_400.0


class Gateway:
    """What the routes share."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        tracing: Tracing,
    ) -> None:
        self.models = models
        workers = settings.image_workers or max(2, len(os.sched_getaffinity(0)) // 2)
        self.pool = ImagePool(workers, settings.max_image_pixels, settings.image_seconds, settings.max_waiting)
        self.settings = settings
        self.metrics = metrics
        self.fetcher = ImageFetcher(settings) if settings.image_hosts else None
        self.session = session
        self.tracing = tracing
        self.bytes = ByteBudget(settings.max_bytes_in_flight)

    async def close(self) -> None:
        await self.pool.close()
        if self.fetcher is not None:
            await self.fetcher.close()


class ChatCompletions:
    """The ASGI endpoint. `translate` makes chat completions of another API's requests; `check` checks them."""

    def __init__(self, gateway: Gateway, translate: Translate | None = None, check: Check = check_chat) -> None:
        self._gateway = gateway
        self._translate = translate
        self._check_fields = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = self._gateway.tracing.begin(scope)
        call = Call(scope["request_id"], scope["path"], scope.get("tenant"), trace)
        leave = None
        try:
            if call.tenant is not None:
                leave = await call.tenant.enter()
            await self._serve(call, scope, receive, send)
        except ApiError as error:
            call.status, call.reason = error.status, error.reason
            translation = call.translation
            if translation is not None:
                rename(error, translation.names)
            if not call.answering:
                await respond_error(scope, send, error)
            else:
                event = error_event(error) if translation is None else translation.writer.error(error)
                await send({"type": "http.response.body", "body": event})
        except ClientGone:
            call.status, call.reason = CLIENT_GONE, "client_gone"
        except asyncio.CancelledError:  # the time to drain is over
            call.status, call.reason = 503, "shutdown"
            raise
        except Exception:
            call.status, call.reason = 500, "internal_error"
            if not call.answering:
                await respond_error(scope, send, crashed())
            raise  # to the log, with its traceback
        finally:
            self._gateway.bytes.give(call.bytes_held)
            if leave is not None:
                leave(call.prompt_tokens + call.generation_tokens)
            account(call, self._gateway.metrics)

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._gateway.settings

        def hold(size: int) -> None:
            self._gateway.bytes.take(size)
            call.bytes_held += size

        seconds = _timeout(scope)
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout, hold)
        self._took(call, "receive", 0.0)
        model, request = self._check(call, body)
        del body
        if call.translation is not None and call.translation.ready is not None:
            await respond(send, 200, call.translation.ready, [JSON_TYPE])
            return
        if seconds is None:
            await self._call(call, model, request, settings.queue_timeout, receive, send)
            return
        late = Deadline(seconds)
        try:
            await self._call(call, model, request, min(settings.queue_timeout, seconds), receive, send)
        except asyncio.CancelledError:
            if not late.passed:
                raise
            if not call.attempts:
                raise model.slots.timed_out() from None
            raise ApiError(504, f"The answer was not complete within {seconds:g} s.", code="request_timeout") from None
        finally:
            late.stop()

    async def _call(
        self, call: Call, model: Model, request: ChatRequest, patience: float, receive: Receive, send: Send
    ) -> None:
        """Prepare the images, wait for a place at an engine, hand the request over and its answer back."""
        gateway = self._gateway
        async with UntilDisconnect(receive) as watch:
            if request.images:
                await self._settle_images(call, model, request)
            payload = Payload(request)
            waits = call.since()
            try:
                slot = await model.slots.take(call.tenant.name if call.tenant else "", request.answers, patience)
            finally:
                call.took("queue", waits)
            replica = None
            try:
                replica = model.enter(request.answers)
                if replica is None:  # it may have died while the request waited
                    raise model.unavailable()
                engine, body = replica.engine, payload.named(replica.model)
                url = engine.url / request.path
                log_probs = None
                if request.top_log_probs is not None and engine.spec.raw_tokens:
                    log_probs = RawLogProbs(request.top_log_probs, engine.spec.byte_level)
                with call.attempt(engine.name) as attempt:
                    async with post(gateway.session, url, body, engine.key, attempt.headers) as response:
                        attempt.answered = call.since()
                        if request.stream:
                            await self._stream(call, request, log_probs, response, watch, slot, send)
                        else:
                            answer, call.usage = request.read(await read_all(response), request.stops, log_probs)
                            if call.translation is not None:
                                answer = write_answer(call.translation.writer, answer)
                            watch.stop()
                            slot.release(served=True)
                            await respond(send, 200, answer, [JSON_TYPE])
            except ApiError as error:
                if replica is not None and error.status == 502 and (why := await replica.engine.last_words()):
                    error.message += f" {why}"
                raise
            finally:
                if replica is not None:
                    model.leave(replica, request.answers)
                slot.release()

    async def _settle_images(self, call: Call, model: Model, request: ChatRequest) -> None:
        gateway, started = self._gateway, call.since()
        model.slots.check()  # fetch and decode nothing for a request that would be refused
        if gateway.fetcher is not None and (remote := gateway.fetcher.remote(request.images)):
            await gateway.fetcher.replace(remote, lambda size: self._hold_fetched(call, size))
            self._inspect(call, request.images)
            self._took(call, "fetch", started)
            started = call.since()
        if await settle_images(request.images, call.images, model.budget, gateway.pool):
            self._took(call, "decode", started)

    def _took(self, call: Call, step: str, started: float) -> None:
        self._gateway.metrics.steps[step].observe(call.took(step, started))

    def _hold_fetched(self, call: Call, size: int) -> None:
        """Count a part of an image that is being fetched. Raises ApiError, as for a body with the image inside."""
        limit = self._gateway.settings.max_body_bytes
        if call.bytes_held + size > limit:
            message = f"The request with the images it names is larger than {limit} bytes."
            raise ApiError(413, message, code="request_too_large")
        self._gateway.bytes.take(size)
        call.bytes_held += size

    def _inspect(self, call: Call, images: list[ImagePart]) -> None:
        call.images = check_images(images, self._gateway.settings)
        self._gateway.metrics.images.observe(len(call.images))
        for image in call.images:
            self._gateway.metrics.image_pixels.observe(image.pixels)

    def _check(self, call: Call, raw: bytes) -> tuple[Model, ChatRequest]:
        """Everything that can be said about a request before an engine sees it. Raises ApiError."""
        body = parse_json(raw)
        if self._translate is not None:
            call.translation = self._translate(body)
            body = call.translation.body
        model = self._gateway.models.find(body)
        if not self._gateway.models.allowed(call.tenant, body["model"]):
            assert call.tenant is not None
            message = f"The key '{call.tenant.name}' may not use this model."
            raise ApiError(403, message, code="model_not_allowed", param="model")
        call.model = model.name
        model.fill_in(body)
        request = self._check_fields(body, model.spec)
        call.stream = request.stream
        check_count(request.images, self._gateway.settings)
        fetcher = self._gateway.fetcher
        if fetcher is None or not fetcher.remote(request.images):  # else they are looked at when they are there
            self._inspect(call, request.images)
        if not model.ready:
            raise model.unavailable()
        return model, request

    async def _stream(
        self,
        call: Call,
        request: ChatRequest,
        log_probs: RawLogProbs | None,
        response: aiohttp.ClientResponse,
        watch: UntilDisconnect,
        slot: Slot,
        send: Send,
    ) -> None:
        if response.content_type != "text/event-stream":
            read_completion(await read_all(response))  # an error answered with status 200 is the likely cause
            raise ApiError(502, "The engine answered a stream request without a stream.", code="engine_error")
        writer = call.translation.writer if call.translation is not None else None
        relay = Relay(request.include_usage or writer is not None, request.stops, log_probs)
        gaps = self._gateway.metrics.gap_seconds.labels(call.model)
        last = 0.0
        async with KeepAlive(call, send, self._gateway.settings.sse_keepalive) as keepalive:
            while True:
                data = await response.content.readany()
                try:
                    events = relay.feed(data)
                except EventTooLong:
                    raise ApiError(502, "The engine sent an endless event.", code="engine_error") from None
                call.usage = relay.usage
                if events:
                    now = call.since()
                    if call.first_token is None:
                        call.first_token = now
                    else:
                        gaps.observe(now - last)
                    last = now
                    keepalive.put_off()
                    if relay.done:
                        watch.stop()
                        slot.release(served=True)
                    await start_stream(call, send)
                    if writer is not None:
                        events = write_events(writer, events)
                    await send({"type": "http.response.body", "body": events, "more_body": not relay.done})
                if relay.done:
                    break
                if relay.error is not None:
                    raise relay.error
                if not data:
                    raise ApiError(502, "The engine's answer ended before it was complete.", code="engine_error")
        # The client has its answer, so whatever happens here is no longer its business.
        with suppress(asyncio.TimeoutError, aiohttp.ClientError, OSError, ApiError):
            await asyncio.wait_for(read_all(response), TAIL_SECONDS)


class Payload:
    """What an engine gets.

    Written anew, never passed on as it came: what the engine reads is what was checked, without duplicate keys.
    """

    def __init__(self, request: ChatRequest) -> None:
        body = request.body
        if request.stream:
            # To count tokens; the relay takes the usage out again if the client didn't ask for it.
            options = body.get("stream_options") or {}
            body["stream_options"] = {**options, "include_usage": True}
        self._model: str = body.pop("model")
        self._written = orjson.dumps({"model": self._model, **body})
        body.clear()  # the images are held once, not twice, while the request waits
        request.images.clear()

    def named(self, model: str) -> bytes:
        """For an engine that knows the model by this name."""
        if model != self._model:
            old, new = (orjson.dumps({"model": name})[:-1] for name in (self._model, model))
            self._model, self._written = model, new + self._written[len(old) :]
        return self._written


def _timeout(scope: Scope) -> float | None:
    """`x-request-timeout`: seconds the client will wait for the whole answer. Raises ApiError 400."""
    given = header(scope, b"x-request-timeout")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_TIMEOUT:
        message = f"The header x-request-timeout must be a number of seconds from 0 to {MAX_TIMEOUT:g}."
        raise ApiError(400, message, code="invalid_value", param="x-request-timeout")
    return seconds
