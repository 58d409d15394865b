"""The request path, a step after the other: receive, parse, check the images, hand over to an engine, account.

Chat completions go through it as they are; requests of other APIs become chat completions first (`translation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from gateway.api.chat import EngineRequest, check_chat
from gateway.api.translation import Object, Translation, rename
from gateway.contract.validation import parse_json
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, crashed
from gateway.http.body import Deadline, read_body
from gateway.http.disconnect import ClientGone, UntilDisconnect
from gateway.http.respond import JSON_TYPE, header, respond, respond_error
from gateway.media.checks import check_count
from gateway.media.prepare import read_images, write_images
from gateway.proxy.call import Call, account
from gateway.proxy.handover import Handover
from gateway.proxy.payload import Payload
from gateway.proxy.prompts import PromptList
from gateway.runtime.models import Model
from gateway.runtime.service import SHUTDOWN_RETRY, Gateway, Service
from gateway.streaming.sse import error_event
from gateway.telemetry.logs import log_refusal

Translate = Callable[[Object], Translation]
Check = Callable[[Object, EngineSpec], EngineRequest]
CLIENT_GONE = 499  # nginx's status for it; never sent, only counted
MAX_TIMEOUT = 86_400.0


class ChatCompletions:
    """The ASGI endpoint. `translate` makes chat completions of another API's requests; `check` checks them."""

    def __init__(self, service: Service, translate: Translate | None = None, check: Check = check_chat) -> None:
        self._service = service
        self._translate = translate
        self._check_fields = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._service.draining:
            error = ApiError(503, "The gateway is shutting down.", code="shutdown", retry_after=SHUTDOWN_RETRY)
            error.headers["connection"] = "close"
            metrics = self._service.metrics
            metrics.child(metrics.requests, "unknown", "503").inc()
            metrics.child(metrics.rejections, "shutdown").inc()
            log_refusal(scope, 503, "shutdown")
            await respond_error(scope, send, error)
            return
        gateway = self._service.gateway  # the request keeps it, whatever configuration comes meanwhile
        gateway.enter()
        try:
            await Exchange(gateway, self._translate, self._check_fields).serve(scope, receive, send)
        finally:
            gateway.leave()


class Exchange:
    """One request and its answer."""

    def __init__(self, gateway: Gateway, translate: Translate | None, check: Check) -> None:
        self._gateway = gateway
        self._translate = translate
        self._check_fields = check

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                await send({"type": "http.response.body", "body": _last_event(call, error)})
        except ClientGone:
            call.status, call.reason = CLIENT_GONE, "client_gone"
        except asyncio.CancelledError:  # the time to drain is over
            call.status, call.reason = 503, "shutdown"
            if call.answering:
                end = ApiError(503, "The gateway is shutting down.", code="shutdown")
                await send({"type": "http.response.body", "body": _last_event(call, end)})
            raise
        except Exception:
            call.status, call.reason = 500, "internal_error"
            if not call.answering:
                await respond_error(scope, send, crashed())
            raise  # to the log, with its traceback
        finally:
            self._gateway.bytes.release(call.bytes_held)
            if leave is not None:
                leave(call.tokens)
            account(call, self._gateway.metrics)

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._gateway.settings

        def hold(size: int) -> None:
            self._gateway.bytes.reserve(size)
            call.bytes_held += size

        seconds = _timeout(scope)
        timers = self._gateway.timers
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout, hold, timers)
        self._record(call, "receive", 0.0)
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
        self, call: Call, model: Model, request: EngineRequest, timeout: float, receive: Receive, send: Send
    ) -> None:
        """Prepare the images, wait for a place at an engine, hand the request over and its answer back."""
        if request.parts:

            async def ask(call: Call, part: EngineRequest, receive: Receive, send: Send) -> None:
                await self._call(call, model, part, timeout, receive, send)

            await PromptList(call, request, send).run(ask, receive)
            return
        gateway = self._gateway
        async with UntilDisconnect(receive, gateway.timers) as watch:
            await self._prepare_images(call, model, request)
            payload = Payload(request, model, call.images)
            call.prompt_estimate = payload.prompt_tokens
            waits = call.since()
            try:
                slot = await model.slots.take(call.tenant.name if call.tenant else "", request.n, timeout)
            finally:
                call.record("queue", waits)
            try:
                await Handover(gateway, call, model, request, payload, slot, watch, send).run()
            finally:
                slot.release()

    async def _prepare_images(self, call: Call, model: Model, request: EngineRequest) -> None:
        """From what the client sent to what the engine gets. Raises ApiError."""
        gateway, started = self._gateway, call.since()
        if not request.images:
            gateway.metrics.images.observe(0)
            return
        model.slots.check()  # no work for a request that would be refused
        images = await read_images(
            request.images,
            gateway.settings,
            model.budget,
            gateway.fetcher,
            lambda size: self._reserve_fetched(call, size),
        )
        call.images = [image.header for image in images]
        gateway.metrics.images.observe(len(images))
        for image in images:
            gateway.metrics.image_pixels.observe(image.header.pixels)
        if any(image.fetched for image in images):
            self._record(call, "fetch", started)
            started = call.since()
        if await write_images(images, gateway.pool):
            self._record(call, "decode", started)

    def _record(self, call: Call, step: str, started: float) -> None:
        self._gateway.metrics.steps[step].observe(call.record(step, started))

    def _reserve_fetched(self, call: Call, size: int) -> None:
        """Count a part of an image that is being fetched. Raises ApiError, as for a body with the image inside."""
        limit = self._gateway.settings.max_body_bytes
        if call.bytes_held + size > limit:
            message = f"The request with the images it names is larger than {limit} bytes."
            raise ApiError(413, message, code="request_too_large")
        self._gateway.bytes.reserve(size)
        call.bytes_held += size

    def _check(self, call: Call, raw: bytes) -> tuple[Model, EngineRequest]:
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
        if not model.ready:  # before anything is spent on images
            raise model.unavailable()
        check_count(request.images, self._gateway.settings)
        return model, request


def _last_event(call: Call, error: ApiError) -> bytes:
    """What ends a stream that failed after its first byte."""
    return error_event(error) if call.translation is None else call.translation.writer.error(error)


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
