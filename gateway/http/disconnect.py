"""Ends a request's work as soon as its client is gone."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive

from gateway.http.timers import Timers, timers_of


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


# A request that is answered sooner is spared the task that watches for its client's disconnect.
WATCH_AFTER = 0.02


class UntilDisconnect:
    """`async with UntilDisconnect(receive):` cancels its block and raises ClientGone when the client goes.

    Call `stop` before the answer's last byte: after it, a server reports a disconnect that isn't one.
    """

    def __init__(self, receive: Receive, timers: Timers | None = None) -> None:
        self._receive = receive
        self._timers = timers or timers_of(asyncio.get_running_loop())

    async def __aenter__(self) -> UntilDisconnect:
        self._task = self._timers.current_task()
        self._watch: asyncio.Task[None] | None = None
        self._timer = self._timers.call_later(WATCH_AFTER, self._start)
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
