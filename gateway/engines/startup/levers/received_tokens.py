"""The side of LMDeploy's server process to `pushed_tokens`: what arrives of each stream waits for its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from lmdeploy.messages import EngineOutput, ResponseType
from lmdeploy.pytorch.engine.mp_engine import zmq_rpc
from lmdeploy.pytorch.engine.mp_engine.base_worker import StreamError

STREAM_METHOD = "instance_async_stream_infer"
PUSHED = "pushed"  # the key of a message that answers no call
# A part of a stream: its number, an output or None, whether it was the last, and what broke the stream.
Part = tuple[int, EngineOutput | None, bool, StreamError | None]


class Inbox:
    """A stream's parts in LMDeploy's server process, until its reader takes them."""

    def __init__(self) -> None:
        self._output: EngineOutput | None = None
        self.done = False
        self.error: StreamError | None = None
        self.arrived: asyncio.Future[None] | None = None  # what its reader waits for

    def put(self, output: EngineOutput | None, done: bool, error: StreamError | None) -> None:
        if output is not None:
            self._output = join(self._output, output)
        self.done = self.done or done
        self.error = error or self.error
        if self.arrived is not None and not self.arrived.done():
            self.arrived.set_result(None)

    def take(self) -> EngineOutput | None:
        output, self._output = self._output, None
        return output

    @property
    def empty(self) -> bool:
        return self._output is None and not self.done


def join(first: EngineOutput | None, second: EngineOutput) -> EngineOutput:
    """Two outputs of a stream as one."""
    if first is not None:
        second.token_ids = [*first.token_ids, *second.token_ids]
        if first.logprobs is not None:
            second.logprobs = [*first.logprobs, *(second.logprobs or ())]
    return second


def receiving_set_reply(original: Any) -> Any:
    """AsyncRPCClient._set_reply that knows messages with parts of streams."""

    def _set_reply(self: Any, reply: dict[str, Any]) -> None:
        parts: list[Part] | None = reply.get(PUSHED)
        if parts is None:
            original(self, reply)
            return
        inboxes = self.__dict__.setdefault("_lensmith_inboxes", {})
        for stream_id, output, done, error in parts:
            inbox = inboxes.get(stream_id)
            if inbox is None:
                inbox = inboxes[stream_id] = Inbox()
            inbox.put(output, done, error)

    return _set_reply


def receiving_stream_call(original: Any) -> Any:
    """AsyncRPCClient.async_stream_call that waits for pushed parts."""

    async def async_stream_call(
        self: Any,
        method: str,
        sess_event: asyncio.Event,
        *args: Any,
        streaming_startup_notify_kwarg: str | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        if method != STREAM_METHOD or streaming_startup_notify_kwarg is None:
            async for output in original(
                self, method, sess_event, *args, streaming_startup_notify_kwarg=streaming_startup_notify_kwarg, **kwargs
            ):
                yield output
            return
        inboxes: dict[int, Inbox] = self.__dict__.setdefault("_lensmith_inboxes", {})
        start = asyncio.create_task(
            self._async_call_impl(
                method, True, *args, _streaming_startup_notify_kwarg=streaming_startup_notify_kwarg, **kwargs
            )
        )
        kwargs.pop("multimodal", None)  # the task has it; the pictures need not live as long as the answer
        done = False

        def started(task: asyncio.Task[int]) -> None:
            sess_event.set()
            if not task.cancelled() and task.exception() is not None:
                zmq_rpc.logger.error(f"ZMQ MP stream startup failed before init: {task.exception()!r}")

        async def drop() -> None:
            """Ends a stream that nobody reads any more, and forgets what had come of it."""
            try:
                stream_id = await start
                await self.async_call("_asyncrpcserver_drop_stream_output", stream_id)
                inboxes.pop(stream_id, None)
            except Exception:
                zmq_rpc.logger.exception(f"ZMQ MP abandoned stream drop failed: method={method}.")

        start.add_done_callback(started)
        try:
            stream_id = await asyncio.shield(start)
            inbox = inboxes.setdefault(stream_id, Inbox())
            while not done:
                if inbox.empty:
                    await wait_for_part(self, stream_id, inbox)
                output, done, error = inbox.take(), inbox.done, inbox.error
                if output is not None:
                    yield output
                if error is not None:
                    yield EngineOutput(ResponseType.INTERNAL_ENGINE_ERROR, [])
            inboxes.pop(stream_id, None)
        finally:
            if not done:
                self.__dict__.setdefault("_lensmith_drops", set()).add(task := asyncio.create_task(drop()))
                task.add_done_callback(self._lensmith_drops.discard)

    return async_stream_call


async def wait_for_part(client: Any, stream_id: int, inbox: Inbox) -> None:
    """Raises RPCServerDeadError if the engine's process is gone: its client fails whatever is in `pending` then."""
    client._check_server_alive()
    inbox.arrived = client.pending[stream_id] = asyncio.get_running_loop().create_future()
    try:
        await inbox.arrived
    finally:
        inbox.arrived = None
        client.pending.pop(stream_id, None)
