"""Tokens leave the engine's process in one message a step; LMDeploy answers one call for each token of each stream.

LMDeploy's server asks `get_stream_output` again for every token, and the engine's process wakes a chain of coroutines,
a timer and a queue for each. Here the response's event itself notes that its stream has something new; before the event
loop waits again, all that is new goes out as one message. A stream whose reader is late gets its tokens together, as
with LMDeploy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from lmdeploy.messages import EngineOutput, ResponseType
from lmdeploy.pytorch.engine import engine_instance
from lmdeploy.pytorch.engine.mp_engine import zmq_rpc
from lmdeploy.pytorch.engine.mp_engine.base_worker import StreamError
from lmdeploy.pytorch.engine.request import RequestType
from lmdeploy.pytorch.messages import SamplingParam

from gateway.engines.startup.levers.received_tokens import (
    PUSHED,
    STREAM_METHOD,
    Part,
    receiving_set_reply,
    receiving_stream_call,
)

ALIVE_SECONDS = 1.0  # between two looks whether the engine's loop still runs


class Outbox:
    """Parts of streams on their way from the engine's process: sent before its event loop waits again."""

    def __init__(self, send: Callable[[bytes, dict[str, Any]], None]) -> None:
        self._send = send
        self._takers: dict[bytes, list[Callable[[], Part | None]]] = {}

    def put(self, client: bytes, take: Callable[[], Part | None]) -> None:
        """`take` is called when the message is made; it may find that there is nothing left to send."""
        if not self._takers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._takers.setdefault(client, []).append(take)

    def _flush(self) -> None:
        takers, self._takers = self._takers, {}
        for client, takes in takers.items():
            parts = [part for part in (take() for take in takes) if part is not None]
            if parts:
                self._send(client, {"request_id": None, PUSHED: parts})


class ResponseEvent:
    """In the place of the asyncio.Event of a response: what the engine sets after every token."""

    def __init__(self, response: Any, new_tokens: Callable[[], None]) -> None:
        self._response = response
        self._new_tokens = new_tokens
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if self._response.type == ResponseType.SUCCESS:
            self._new_tokens()
        elif not self._ended.done():
            self._ended.set_result(None)

    async def wait_for_end(self, is_alive: Callable[[], bool]) -> None:
        """Returns when the response has ended. One whose engine has stopped gets the type that says so."""
        while not self._ended.done():
            await asyncio.wait({self._ended}, timeout=ALIVE_SECONDS)
            if not self._ended.done() and not is_alive():
                self._response.type = ResponseType.ENGINE_STOP_ERROR
                return


def take_output(response: Any, offset: int) -> EngineOutput | None:
    """What a response holds beyond its first `offset` tokens; None if that is nothing and it goes on."""
    data = response.data or {}
    running = response.type == ResponseType.SUCCESS
    if not running and response.type not in (ResponseType.FINISH, ResponseType.CANCEL):
        return EngineOutput(response.type, [])
    token_ids = data.get("token_ids")
    tokens = [] if token_ids is None else token_ids[offset:].tolist()
    logprobs = data.pop("logprobs", None)
    if running and not tokens:
        return None
    return EngineOutput(
        response.type,
        tokens,
        logits=None if running else data.get("logits"),
        cache_block_ids=data.get("cache_block_ids"),
        req_metrics=data.get("req_metrics"),
        routed_experts=None if running else data.get("routed_experts"),
        logprobs=logprobs,
        ce_loss=None if running else data.get("ce_loss"),
    )


def pushing_stream_infer(original: Any) -> Any:
    """EngineInstance.async_stream_infer that hands running tokens to `push` and yields the last output only."""

    async def async_stream_infer(
        self: Any,
        session_id: int,
        input_ids: list[int],
        gen_config: Any = None,
        multimodal: Any = None,
        adapter_name: str | None = None,
        notify_add_msg_func: Callable[[], None] | None = None,
        push: Callable[[Callable[[], EngineOutput | None]], None] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[EngineOutput]:
        if push is None or gen_config is None or self._enable_transfer_obj_ref:
            async for output in original(
                self, session_id, input_ids, gen_config, multimodal, adapter_name, notify_add_msg_func, **kwargs
            ):
                yield output
            return
        if len(input_ids) > self.max_input_len:
            yield EngineOutput(ResponseType.INPUT_LENGTH_ERROR, [])
            return
        added = self.req_sender.send_async(RequestType.ADD_SESSION, {"session_id": session_id, "response": False})
        try:
            message = {
                "token_ids": input_ids,
                "session_id": session_id,
                "sampling_param": SamplingParam.from_gen_config(gen_config=gen_config),
                "adapter_name": adapter_name,
                "input_multimodals": multimodal,
                "migration_request": gen_config.migration_request,
                "with_cache": gen_config.with_cache,
                "preserve_cache": gen_config.preserve_cache,
            }
            response = self.req_sender.send_async(RequestType.ADD_MESSAGE, message)
            sent = 0

            def take() -> EngineOutput | None:
                nonlocal sent
                if response.type != ResponseType.SUCCESS:
                    return None  # it ended meanwhile: the last output has these tokens too
                output = take_output(response, sent)
                sent += len(output.token_ids) if output else 0
                return output

            refused = response.is_done  # the engine sleeps and has answered already
            response.event = event = ResponseEvent(response, lambda: push(take))
            if refused:
                event.set()
            if notify_add_msg_func is not None:
                notify_add_msg_func()
            await event.wait_for_end(self.req_sender.is_loop_alive)
            yield take_output(response, sent) or EngineOutput(response.type, [])
        finally:
            if not added.is_done:
                await self.async_end(session_id)

    return async_stream_infer


def last_part(stream_id: int, output: EngineOutput) -> Part:
    return stream_id, output, False, None


def pushing_stream_task(original: Any) -> Any:
    """AsyncRPCServer._method_async_streaming_task that pushes a stream's parts instead of keeping them."""

    async def _method_async_streaming_task(
        self: Any,
        stream_id: int,
        request_id: str,
        client_id: bytes,
        method: Any,
        args: Any,
        kwargs: dict[str, Any],
        startup_notify_kwarg: str | None = None,
    ) -> None:
        if method.__name__ != STREAM_METHOD or startup_notify_kwarg is None:
            await original(self, stream_id, request_id, client_id, method, args, kwargs, startup_notify_kwarg)
            return
        outbox: Outbox = self.__dict__.setdefault("_lensmith_outbox", Outbox(self.send_multipart))
        started = False

        def start() -> None:
            nonlocal started
            if not started:
                started = True
                self.send_multipart(client_id, {"success": True, "request_id": request_id, "result": stream_id})

        def push(take: Callable[[], EngineOutput | None]) -> None:
            def part() -> Part | None:
                output = take() if stream_id in self.stream_tasks else None  # not there: its reader has gone
                return None if output is None else (stream_id, output, False, None)

            outbox.put(client_id, part)

        error: StreamError | None = None
        dropped = False
        try:
            async for output in method(*args, **{**kwargs, startup_notify_kwarg: start, "push": push}):
                outbox.put(client_id, partial(last_part, stream_id, output))
        except asyncio.CancelledError:
            dropped = True
            raise
        except Exception as fault:
            zmq_rpc.logger.exception(f"ZMQ MP stream task failed: stream_id={stream_id}, request_id={request_id}.")
            error = StreamError.from_exception(fault)
        finally:
            start()
            if not dropped:
                outbox.put(client_id, lambda: (stream_id, None, True, error))

    return _method_async_streaming_task


def pull() -> None:
    server, client = zmq_rpc.AsyncRPCServer, zmq_rpc.AsyncRPCClient
    server._method_async_streaming_task = pushing_stream_task(server._method_async_streaming_task)
    client._set_reply = receiving_set_reply(client._set_reply)
    client.async_stream_call = receiving_stream_call(client.async_stream_call)
    instance = engine_instance.EngineInstance
    instance.async_stream_infer = pushing_stream_infer(instance.async_stream_infer)
