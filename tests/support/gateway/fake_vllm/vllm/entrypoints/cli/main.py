"""`python -m vllm.entrypoints.cli.main serve` without a GPU: vLLM 0.33.0's log lines, routes and ways to fail.

What it imitates was read from the wheel of 0.33.0: the log's format in logger.py, the lines of v1/engine/core.py,
v1/worker/gpu_model_runner.py and v1/core/kv_cache_utils.py, the keys' guard of entrypoints/serve/middleware, /health of
entrypoints/serve/instrumentator, the metrics' names of v1/metrics/loggers.py. FAKE_VLLM names what goes wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import shared_memory

from aiohttp import web

from tests.support.gateway import fake_engine

FAULT = os.environ.get("FAKE_VLLM", "")
GUARDED = ("/v1", "/v2", "/inference")
CORE = "(EngineCore pid=12) "
START = {
    "no-room": f"""\
{CORE}ERROR 11-28 05:00:00 [core.py:1584] EngineCore failed to start.
{CORE}ERROR 11-28 05:00:00 [core.py:1584] Traceback (most recent call last):
{CORE}ERROR 11-28 05:00:00 [core.py:1584] ValueError: To serve at least one request with the model's \
max seq len (32768), (3.50 GiB KV cache is needed, which is larger than the available KV cache memory (1.20 GiB). Try
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{'EngineCore': 1}}""",
    "strange": "ValueError: the moon is in the wrong house\nRuntimeError: Engine core initialization failed.",
}
OUT_OF_MEMORY = f"""\
{CORE}ERROR 11-28 05:05:00 [core.py:1586] EngineCore encountered a fatal error.
{CORE}ERROR 11-28 05:05:00 [core.py:1586] Traceback (most recent call last):
{CORE}ERROR 11-28 05:05:00 [core.py:1586] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."""
# The engine's process is killed: its server answers whoever waits, and ends by itself after a while.
KILLED = """\
(APIServer pid=11) WARNING 11-28 05:05:00 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; \
starting cleanup
(APIServer pid=11) ERROR 11-28 05:05:00 [async_llm.py:906] AsyncLLM output_handler failed.
(APIServer pid=11) ERROR 11-28 05:05:00 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause."""
OF_A_REQUEST = """\
(APIServer pid=11) ERROR 11-28 05:04:00 [hermes_tool_parser.py:117] Error in extracting tool call from response.
(APIServer pid=11) ERROR 11-28 05:04:00 [hermes_tool_parser.py:117] json.decoder.JSONDecodeError: Expecting value"""
METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 3.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 3.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.5
"""


def engine_core() -> None:
    """The process of its own that the engine is. In the middle of a step (FAKE_VLLM_BUSY) it ignores signals."""
    if os.environ.get("FAKE_VLLM_BUSY"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


class FakeVllm(fake_engine.FakeEngine):
    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if text.startswith("Which colours are there?"):
            assert content[0]["type"] == "image_url"
            whole = self._whole("red and blue", 3)
            number = -0.25 if body["model"] == self.name else -0.75
            whole["choices"][0]["logprobs"] = {"content": [{"token": "red", "logprob": number, "top_logprobs": []}]}
            return web.json_response(whole)
        if text == "fault out-of-memory":
            print(OUT_OF_MEMORY, flush=True)
            await asyncio.sleep(3600)
        if text == "fault killed":
            print(OF_A_REQUEST, KILLED, sep="\n", flush=True)
            asyncio.get_running_loop().call_later(2.5, os._exit, 0)
            why = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            error = {"message": why, "type": "InternalServerError", "param": None, "code": 500}
            return web.json_response({"error": error}, status=500)
        return await super()._answer(request)

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.name, "owned_by": "vllm"}]})

    async def alive(self, request: web.Request) -> web.Response:
        return web.Response()

    async def exposition(self, request: web.Request) -> web.Response:
        return web.Response(text=METRICS)


@web.middleware
async def guard(request: web.Request, handler: object) -> web.StreamResponse:
    wanted = f"Bearer {os.environ['VLLM_API_KEY']}"
    if request.path.startswith(GUARDED) and request.headers.get("authorization") != wanted:
        return web.json_response({"error": "Unauthorized"}, status=401)
    answer: web.StreamResponse = await handler(request)  # type: ignore[operator]
    return answer


def log(message: str, process: str = "EngineCore") -> None:
    print(f"({process} pid=12) INFO 11-28 05:00:00 [core.py:140] {message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    given = parser.parse_known_args()[0]
    print("arguments:", json.dumps(sys.argv[1:]), flush=True)
    pause = float(os.environ.get("FAKE_VLLM_PAUSE", "0"))
    log("Initializing a V1 LLM engine (v0.33.0) with config: ...")
    log(f"Starting to load model {given.folder}...")
    time.sleep(pause)
    if FAULT in START:
        print(START[FAULT], flush=True)
        sys.exit(1)
    log("Model loading took 4.09 GiB memory and 2.2 seconds")
    log("GPU KV cache size: 84,608 tokens, Maximum concurrency for 32,768 tokens per request: 2.58x")
    print("Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 71.55it/s]", flush=True)
    print("Capturing CUDA graphs (decode, FULL):  50%|#####     | 4/8 [00:01<00:01,  3.9it/s]", flush=True)
    log("init engine (profile, create kv cache, warmup model) took 12.00 s (compilation: 5.00 s)")
    if name := os.environ.get("FAKE_VLLM_SHARED"):
        shared = shared_memory.SharedMemory(name, create=True, size=4096)
        print(shared.name, "is there", flush=True)
    multiprocessing.get_context("fork").Process(target=engine_core, daemon=True).start()
    fake_engine.KEY = None
    engine = FakeVllm(given.served_model_name)
    app = web.Application(client_max_size=128 * 1024 * 1024, middlewares=[guard])
    app.add_routes(
        [
            web.get("/v1/models", engine.listed),
            web.get("/health", engine.alive),
            web.get("/metrics", engine.exposition),
            web.post("/v1/chat/completions", engine.chat),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
