"""Tokens through LMDeploy's own calls between its processes, with an engine that counts: with the lever and without."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmdeploy")
pytest.importorskip("zmq")

import numpy as np
from lmdeploy.messages import GenerationConfig, RequestMetrics, ResponseType
from lmdeploy.pytorch.engine.engine import InferOutput, response_reqs
from lmdeploy.pytorch.engine.engine_instance import EngineInstance
from lmdeploy.pytorch.engine.engine_loop import EngineLoop
from lmdeploy.pytorch.engine.mp_engine.base import MPEngineInstance, SessionState
from lmdeploy.pytorch.engine.mp_engine.base_worker import EngineWorkerBase
from lmdeploy.pytorch.engine.mp_engine.zmq_rpc import AsyncRPCClient, AsyncRPCServer, RPCServerDeadError
from lmdeploy.pytorch.engine.request import RequestManager, RequestType

from gateway.engines.startup.levers import pushed_tokens


class CountingEngine:
    """Answers every request with 0, 1, 2, ...: a token a step; `cancel` ends one as LMDeploy's engine does."""

    max_session_len = 1000

    def __init__(self) -> None:
        self.engine_config = SimpleNamespace(enable_transfer_obj_ref=False, max_batch_size=8)
        self.req_manager = manager = RequestManager()
        self.running: dict[int, list[Any]] = {}
        self.ended: list[int] = []
        manager.bind_func(RequestType.ADD_SESSION, self._agree)
        manager.bind_func(RequestType.STOP_SESSION, self._stop)
        manager.bind_func(RequestType.END_SESSION, self._end)
        manager.bind_func(RequestType.ADD_MESSAGE, self._add)
        manager.set_main_loop_func(self._loop)

    def start_loop(self) -> None:
        self.req_manager.create_loop_task()

    def create_instance(self) -> EngineInstance:
        return EngineInstance(self)

    def _agree(self, requests: list[Any], **_: Any) -> None:
        for request in requests:
            if request.data.get("response", True):
                response_reqs(self.req_manager, request.resp, ResponseType.SUCCESS)

    def _add(self, requests: list[Any], **_: Any) -> None:
        for request in requests:
            wanted = request.data["sampling_param"].max_new_tokens
            self.running[request.data["session_id"]] = [request.resp, 0, wanted]

    def _stop(self, requests: list[Any], **_: Any) -> None:
        for request in requests:
            at = self.running.pop(request.data["session_id"], None)
            if at is not None:
                self.req_manager.reject_request(at[0])
        self._agree(requests)

    def _end(self, requests: list[Any], **_: Any) -> None:
        for request in requests:
            self.ended.append(request.data["session_id"])
            self.running.pop(request.data["session_id"], None)
        self._agree(requests)

    async def _loop(self) -> None:
        async def take() -> None:
            while True:
                await self.req_manager.step()

        taking = asyncio.create_task(take())
        ids = np.arange(1000)
        sending: Any = SimpleNamespace(
            req_manager=self.req_manager, _log_resps=lambda _: None, _update_logprobs=EngineLoop._update_logprobs
        )
        sending._send_resp = lambda output: EngineLoop._send_resp(sending, output)
        try:
            while True:
                await asyncio.sleep(0.001)
                outputs = []
                for session, at in list(self.running.items()):
                    at[1] += 1
                    finish = at[1] >= at[2]
                    logprobs = [([-0.5], [at[1] - 1])]
                    outputs.append(InferOutput(session, at[0], ids[: at[1]], finish=finish, logprobs=logprobs))
                    outputs[-1].req_metrics = RequestMetrics(1.0)
                    if finish:
                        del self.running[session]
                EngineLoop._send_resps(sending, outputs)
        finally:
            taking.cancel()


class Caller:
    """What LMDeploy's server process has of its engine."""

    def __init__(self, client: AsyncRPCClient) -> None:
        self.client = client
        self.session_states: dict[int, SessionState] = defaultdict(SessionState)
        self.pending_cancel_sessions: set[int] = set()

    async def _collective_rpc_async(self, method: str, *args: Any) -> Any:
        return await self.client.async_call(method, *args)

    async def _collective_rpc_streaming_async(self, method: str, event: Any, *args: Any, **kwargs: Any) -> Any:
        name = "notify_add_msg_func"
        async for out in self.client.async_stream_call(
            method, event, *args, streaming_startup_notify_kwarg=name, **kwargs
        ):
            yield out


@pytest.fixture(params=["stock", "pushed"])
def rpc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pushed":
        seams = (
            (AsyncRPCServer, "_method_async_streaming_task"),
            (AsyncRPCClient, "_set_reply"),
            (AsyncRPCClient, "async_stream_call"),
            (EngineInstance, "async_stream_infer"),
        )
        for owner, name in seams:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
        pushed_tokens.pull()
    return


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[MPEngineInstance, CountingEngine, Caller]]:
    server, engine = AsyncRPCServer(), CountingEngine()
    worker = EngineWorkerBase(engine)
    for name in ("instance_async_stream_infer", "instance_async_end", "instance_async_cancel"):
        server.register_method(name, getattr(worker, name))
    serving = asyncio.create_task(server.run())
    caller = Caller(AsyncRPCClient(port=server.port))
    try:
        yield MPEngineInstance(caller), engine, caller
    finally:
        caller.client._listen_task.cancel()
        server.stop()
        await asyncio.wait({serving})
        engine.req_manager.stop_loop()


async def collect(instance: MPEngineInstance, session: int, tokens: int) -> list[Any]:
    generation = GenerationConfig(max_new_tokens=tokens, logprobs=1)
    return [out async for out in instance.async_stream_infer(session_id=session, input_ids=[1], gen_config=generation)]


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110, LMDeploy's own code wakes nobody here
        await asyncio.sleep(0.001)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))
    gc.collect()  # tasks that LMDeploy begins as the loop ends are destroyed here, not in the midst of another test


@pytest.mark.usefixtures("rpc")
def test_every_stream_gets_all_its_tokens_in_order_and_its_session_is_ended() -> None:
    async def test() -> None:
        async with pair() as (instance, engine, _):
            all_outputs = await asyncio.gather(*(collect(instance, session, 20 + session) for session in range(1, 6)))
            for session, outputs in enumerate(all_outputs, 1):
                assert [token for out in outputs for token in out.token_ids] == list(range(20 + session))
                assert [next(iter(row)) for out in outputs for row in out.logprobs] == list(range(20 + session))
                assert outputs[-1].status == ResponseType.FINISH
                assert outputs[-1].req_metrics.token_timestamp == 1.0
            assert sorted(engine.ended) == [1, 2, 3, 4, 5]

    run(test)


@pytest.mark.usefixtures("rpc")
def test_a_late_reader_gets_its_tokens_together() -> None:
    async def test() -> None:
        async with pair() as (instance, _, _caller):
            outputs = []
            generation = GenerationConfig(max_new_tokens=30)
            async for out in instance.async_stream_infer(session_id=1, input_ids=[1], gen_config=generation):
                outputs.append(out)
                await asyncio.sleep(0.02)
            assert [token for out in outputs for token in out.token_ids] == list(range(30))
            assert len(outputs) < 15

    run(test)


@pytest.mark.usefixtures("rpc")
def test_a_cancelled_answer_ends_with_that() -> None:
    async def test() -> None:
        async with pair() as (instance, engine, _):
            task = asyncio.create_task(collect(instance, 1, 900))
            await until(lambda: 1 in engine.running)
            await instance.async_cancel(1)
            assert (await task)[-1].status == ResponseType.CANCEL

    run(test)


@pytest.mark.usefixtures("rpc")
def test_a_stream_that_nobody_reads_is_ended_in_the_engine_and_nothing_is_kept_of_it() -> None:
    async def test() -> None:
        async with pair() as (instance, engine, caller):
            task = asyncio.create_task(collect(instance, 1, 900))
            await until(lambda: 1 in engine.running)
            task.cancel()
            await until(lambda: engine.ended == [1] and not caller.client.__dict__.get("_lensmith_inboxes"))
            assert [token for out in await collect(instance, 2, 5) for token in out.token_ids] == [0, 1, 2, 3, 4]

    run(test)


@pytest.mark.usefixtures("rpc")
def test_readers_learn_that_the_engine_s_process_has_died() -> None:
    async def test() -> None:
        async with pair() as (instance, engine, caller):
            task = asyncio.create_task(collect(instance, 1, 900))
            await until(lambda: 1 in engine.running)
            await asyncio.sleep(0.01)
            caller.client._mark_server_dead()
            with pytest.raises(RPCServerDeadError):
                await task

    run(test)
