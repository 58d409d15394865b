"""The client's side of a stream: its head, once, and a sign of life while nothing comes."""

from __future__ import annotations

import asyncio

from starlette.types import Send

from gateway.http.timers import Timer, Timers
from gateway.proxy.call import Call
from gateway.streaming.sse import COMMENT, CONTENT_TYPE, STREAM_HEADERS


async def start_stream(call: Call, send: Send) -> None:
    """Send a stream's head, once. Until then a failure is answered with an HTTP status."""
    if not call.answering:
        call.answering = True
        content_type = CONTENT_TYPE if call.translation is None else call.translation.writer.content_type
        headers = [(b"content-type", content_type), *STREAM_HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


class KeepAlive:
    """Sends a comment line whenever a stream has been silent for some seconds, so that no proxy takes it for dead."""

    def __init__(self, call: Call, send: Send, seconds: float, timers: Timers) -> None:
        self._call = call
        self._send = send
        self._seconds = seconds
        self._timers = timers
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KeepAlive:
        self._last = self._timers.time()
        self._timer: Timer | asyncio.TimerHandle = self._timers.call_later(self._seconds, self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def put_off(self) -> None:
        self._last = self._timers.time()  # the timer looks at it; to set a new one with each event costs more

    def _look(self) -> None:
        now = self._timers.time()
        if now >= self._last + self._seconds:
            self._last = now
            self._task = self._timers.create_task(self._ping())
        self._timer = self._timers.call_at(self._last + self._seconds, self._look)

    async def _ping(self) -> None:
        comment = COMMENT if self._call.translation is None else self._call.translation.writer.comment
        if comment:
            await start_stream(self._call, self._send)
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})
