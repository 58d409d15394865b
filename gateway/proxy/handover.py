"""A checked request goes to a replica and its answer to the client; another replica is asked if the first is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import lru_cache

import orjson
from starlette.types import Send
from yarl import URL

from gateway.api.chat import CHAT_PATH, EngineRequest
from gateway.api.translation import write_answer, write_events
from gateway.engines.base import Engine
from gateway.engines.client import post, read_all
from gateway.errors import ApiError, engine_lost
from gateway.http.client_protocol import CallFailed, Response
from gateway.http.disconnect import UntilDisconnect
from gateway.http.respond import JSON_TYPE, respond
from gateway.proxy.call import Call
from gateway.proxy.client_stream import KeepAlive, start_stream
from gateway.proxy.payload import Payload
from gateway.runtime.models import Model, Replica
from gateway.runtime.service import Gateway
from gateway.scheduling.router import Assignment, Outcome, Target
from gateway.scheduling.slots import Slot
from gateway.streaming.collect import CollectedAnswer
from gateway.streaming.completion import read_completion
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.normalise import Normaliser
from gateway.streaming.relay import Relay
from gateway.streaming.sse import EventTooLong

# How long we wait for the end of an engine's answer after [DONE], to use its connection again.
TAIL_SECONDS = 0.25
# Longest wait until an engine has ended an answer.
ABORT_SECONDS = 5.0


class Handover:
    """One request that has its place (`slot`) at the model's replicas, on its way there and back."""

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        model: Model,
        request: EngineRequest,
        payload: Payload,
        slot: Slot,
        watch: UntilDisconnect,
        send: Send,
    ) -> None:
        self._gateway = gateway
        self._call = call
        self._model = model
        self._request = request
        self._payload = payload
        self._slot = slot
        self._watch = watch
        self._send = send
        self._begun = False  # something of an answer was read and perhaps passed on

    async def run(self) -> None:
        """Raises ApiError, that of the last replica if several were lost."""
        model, tried = self._model, list[Target]()
        lost: ApiError | None = None
        while True:
            assignment = model.router.enter(self._request.n, self._payload.affinity, tried)
            if assignment is None:
                if lost is None:  # they may have died while the request waited
                    raise model.unavailable()
                await _explain(lost, tried[-1])
                raise lost
            outcome = Outcome.NONE
            asked = (*tried, assignment.target)
            last = not any(replica.up and replica not in asked for replica in model.replicas)
            try:
                await self._ask(assignment, last)
                outcome = Outcome.ANSWERED
                return
            except ApiError as error:
                outcome = _outcome(error)
                if not error.retryable or self._begun:
                    await _explain(error, assignment.target)
                    raise
                lost = error
                tried.append(assignment.target)
            finally:
                model.release(assignment, outcome)

    async def _ask(self, assignment: Assignment, last: bool) -> None:
        """`last`: there is no other replica to ask."""
        replica, call, request = assignment.target, self._call, self._request
        assert isinstance(replica, Replica)
        engine, body = replica.engine, self._payload.named(replica.model)
        log_probs = None
        if request.top_log_probs is not None and engine.spec.raw_tokens:
            log_probs = RawLogProbs(request.top_log_probs, engine.spec.byte_level)
        with call.attempt(engine.name) as called:
            url = _joined(engine.url, request.path)
            async with post(self._gateway.client, url, body, engine.key, called.headers, resend=last) as response:
                called.answered = call.since()
                if request.stream:
                    await self._stream(response, log_probs, engine, assignment)
                    return
                if request.collects:
                    answer = await self._collect(response, log_probs, engine)
                else:
                    raw = await read_all(response)
                    answer, call.usage = request.read(raw, request.stops, log_probs, self._normaliser())
                if call.translation is not None:
                    answer = write_answer(call.translation.writer, answer)
                self._watch.stop()
                self._slot.release(served=True)
                await respond(self._send, 200, answer, [JSON_TYPE])

    async def _stream(
        self, response: Response, log_probs: RawLogProbs | None, engine: Engine, assignment: Assignment
    ) -> None:
        await _expect_stream(response)
        call, send = self._call, self._send
        writer = call.translation.writer if call.translation is not None else None
        include_usage = self._request.include_usage or writer is not None
        request = self._request
        relay = Relay(include_usage, request.stops, log_probs, self._normaliser(), request.usage_everywhere)
        gaps = self._gateway.metrics.child(self._gateway.metrics.gap_seconds, call.model)
        last, ended = 0.0, False
        gateway = self._gateway
        async with KeepAlive(call, send, gateway.settings.sse_keepalive, gateway.timers) as keepalive:
            while True:
                data = await response.read_some()
                try:
                    events = relay.feed(data)
                except EventTooLong:
                    raise _endless() from None
                call.usage = relay.usage
                if relay.begun and not self._begun:
                    self._begun = True
                    self._model.begun(assignment)
                if events:
                    call.events = relay.events
                    now = call.since()
                    if call.first_token is not None:
                        gaps.observe(now - last)
                    elif relay.content_begun or relay.done:
                        call.first_token = now
                    last = now
                    keepalive.put_off()
                    if relay.done:
                        self._watch.stop()
                        self._slot.release(served=True)
                    await start_stream(call, send)
                    if writer is not None:
                        events = write_events(writer, events)
                    await send({"type": "http.response.body", "body": events, "more_body": not relay.done})
                if relay.done:
                    break
                if relay.error is not None:
                    raise relay.error
                if not data:
                    raise _incomplete()
                if request.session is not None and not ended and request.all_cut:
                    ended = True
                    await self._end_early(engine)
        # The client has its answer, so whatever happens here is no longer its business.
        if response.complete:
            return
        with suppress(asyncio.TimeoutError, CallFailed, ApiError):
            await asyncio.wait_for(read_all(response), TAIL_SECONDS)

    async def _collect(self, response: Response, log_probs: RawLogProbs | None, engine: Engine) -> bytes:
        """The whole answer, of a stream that is ended at a stop string: asked for a whole one, LMDeploy would go on."""
        await _expect_stream(response)
        request, collected, ended = self._request, CollectedAnswer(), False
        relay = Relay(True, request.stops, log_probs, self._normaliser())
        while not relay.done:
            data = await response.read_some()
            try:
                collected.feed(relay.feed(data))
            except EventTooLong:
                raise _endless() from None
            self._call.usage = relay.usage
            if relay.error is not None:
                raise relay.error
            if not data and not relay.done:
                raise _incomplete()
            if request.all_cut and not ended:
                ended = True
                await self._end_early(engine)
        return collected.whole()

    async def _end_early(self, engine: Engine) -> None:
        """Have the engine end an answer that met its stop string; it then says how many tokens it cost.

        One that can't, because it was started without the option for it, goes on to the answer's own end.
        """
        url, body = engine.url / engine.spec.abort_path, orjson.dumps({"session_id": self._request.session})

        async def abort() -> None:
            async with post(self._gateway.client, url, body, engine.key, {}) as response:
                await read_all(response)

        with suppress(asyncio.TimeoutError, ApiError):
            await asyncio.wait_for(abort(), ABORT_SECONDS)

    def _normaliser(self) -> Normaliser:
        request = self._request
        chat = request.path == CHAT_PATH
        return Normaliser(self._call.request_id, request.model, request.n, self._payload.prompt_tokens, chat)


_joined = lru_cache(maxsize=256)(URL.joinpath)  # URLs take microseconds to put together


def _outcome(error: ApiError) -> Outcome:
    if error.unreachable:
        return Outcome.UNREACHABLE
    return Outcome.FAILED if error.status >= 500 else Outcome.ANSWERED


def _incomplete() -> ApiError:
    return engine_lost(502, "The engine's answer ended before it was complete.")


def _endless() -> ApiError:
    return ApiError(502, "The engine sent an endless event.", code="engine_error")


async def _expect_stream(response: Response) -> None:
    """Raises ApiError if this is none. Some servers call every stream text or bytes."""
    if response.content_type in ("application/json", "text/html"):
        read_completion(await read_all(response))  # an error answered with status 200 is the likely cause
        raise ApiError(502, "The engine answered a stream request without a stream.", code="engine_error")


async def _explain(error: ApiError, target: Target) -> None:
    """Say what the engine died of, if it did."""
    assert isinstance(target, Replica)
    if error.status == 502 and (why := await target.engine.exit_reason()):
        error.message += f" {why}"
