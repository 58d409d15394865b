"""Several prompts in one text completion: each is asked for by itself, and their answers become one.

No engine gets the list, because engines number its choices differently. Choice i of prompt p is number p * n + i, as
OpenAI's API counts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import orjson
from starlette.types import Message, Receive, Send

from gateway.api.chat import EngineRequest
from gateway.http.disconnect import UntilDisconnect
from gateway.http.respond import JSON_TYPE, respond
from gateway.proxy.call import Call
from gateway.proxy.client_stream import start_stream
from gateway.streaming.sse import DONE, data_of, event, event_data, split_events
from gateway.telemetry.tracing import Trace

# Asks an engine for one of the parts, as `Exchange` does for a whole request.
Ask = Callable[[Call, EngineRequest, Receive, Send], Coroutine[Any, Any, None]]
COUNTED = ("prompt_tokens", "completion_tokens", "total_tokens")


class PromptList:
    """The parts of one request on their way. `call` is the whole request's account, and each part has its own."""

    def __init__(self, call: Call, request: EngineRequest, send: Send) -> None:
        self._call = call
        self._request = request
        self._send = send
        self._head: dict[str, Any] | None = None  # of the first chunk, for all
        self._whole: list[bytes] = [b""] * len(request.parts)
        self._calls = [
            Call(call.request_id, call.path, call.tenant, Trace(call.trace.carrier), None, call.started, call.model)
            for _ in request.parts
        ]

    async def run(self, ask: Ask, receive: Receive) -> None:
        """Raises ApiError, that of the first part which fails; the others are aborted then."""
        async with UntilDisconnect(receive) as watch:
            try:
                await self._ask_all(ask)
            finally:
                self._add_up()
            watch.stop()
            if self._request.stream:
                await self._end_stream()
            else:
                await respond(self._send, 200, self._joined(), [JSON_TYPE])

    async def _ask_all(self, ask: Ask) -> None:
        take = self._take_events if self._request.stream else self._take
        tasks = [
            asyncio.create_task(ask(call, part, _never, partial(take, at)))
            for at, (call, part) in enumerate(zip(self._calls, self._request.parts, strict=True))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, at: int, message: Message) -> None:
        self._whole[at] += message.get("body", b"")

    async def _take_events(self, at: int, message: Message) -> None:
        """Pass a part's events on, with its choices' numbers in the whole; the end and the usage come later, once."""
        passed = []
        for single in split_events(message.get("body", b"")):
            chunk = event_data(single)
            if isinstance(chunk, dict):
                if not chunk["choices"]:
                    continue
                if self._head is None:
                    self._head = {key: chunk[key] for key in ("id", "object", "created", "model") if key in chunk}
                for choice in chunk["choices"]:
                    choice["index"] += at * self._request.n
                passed.append(event({**chunk, **self._head}))
            elif data_of(single) is None:
                passed.append(single)
        if passed:
            await start_stream(self._call, self._send)
            await self._send({"type": "http.response.body", "body": b"".join(passed), "more_body": True})

    async def _end_stream(self) -> None:
        await start_stream(self._call, self._send)
        usage = event({**(self._head or {}), "choices": [], "usage": self._call.usage})
        body = usage + DONE if self._request.include_usage else DONE
        await self._send({"type": "http.response.body", "body": body})

    def _joined(self) -> bytes:
        answers = [orjson.loads(answer) for answer in self._whole]
        choices = []
        for at, answer in enumerate(answers):
            choices += [{**choice, "index": choice["index"] + at * self._request.n} for choice in answer["choices"]]
        return orjson.dumps({**answers[0], "choices": choices, "usage": self._call.usage})

    def _add_up(self) -> None:
        """The parts' accounts, whatever became of them, are the request's."""
        call = self._call
        call.attempts = [attempt for part in self._calls for attempt in part.attempts]
        call.events = sum(part.events for part in self._calls)
        call.prompt_estimate = sum(part.prompt_estimate for part in self._calls)
        begun = [part.first_token for part in self._calls if part.first_token is not None]
        call.first_token = min(begun, default=None)
        if all(part.usage for part in self._calls):
            call.usage = {name: sum(part.usage.get(name) or 0 for part in self._calls) for name in COUNTED}
        for part in self._calls:
            for step, (start, end) in part.steps.items():
                known = call.steps.get(step, (start, end))
                call.steps[step] = min(start, known[0]), max(end, known[1])


async def _never() -> Message:
    """What a part receives: the whole request looks out for its client."""
    await asyncio.Event().wait()
    raise AssertionError
