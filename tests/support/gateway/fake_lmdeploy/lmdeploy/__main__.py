"""`python -m lmdeploy serve api_server` without a GPU: LMDeploy 0.18's log lines and ways to fail, and the fake engine.

FAKE_LMDEPLOY names what goes wrong: a fault of START below, `wrong ANSWER`, or one that a request's text asks for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time

from aiohttp import web

import lmdeploy
from tests.support.gateway import fake_engine

FAULT = os.environ.get("FAKE_LMDEPLOY", "")
ERROR = "2026-11-21 10:00:01,000 - lmdeploy - ERROR -"
NO_BOS = "'Qwen3VLTextConfig' object has no attribute 'bos_token_id'"
CACHE = "CacheConfig(max_batches=7, block_size=64, num_cpu_blocks=0, num_gpu_blocks=1322, window_size=-1)."
START = {
    "no-bos": f"""\
{ERROR} base.py:53 - AttributeError: {NO_BOS}
{ERROR} base.py:54 - <Model> check failed!
Checking failed with error {NO_BOS}. Please send issue to LMDeploy with error logs.
Traceback (most recent call last):
  File "/usr/lib/python3.12/multiprocessing/process.py", line 314, in _bootstrap
    self.run()
SystemExit: 1
RuntimeError: PyTorch ZMQ engine process exited before publishing RPC server port.""",
    "strange": "ValueError: the moon is in the wrong house\nSystemExit: 1",
}  # fmt: skip
OUT_OF_MEMORY = """\
2026-11-21 10:05:00,000 - lmdeploy - ERROR - engine.py:672 - Engine main loop failed.
Traceback (most recent call last):
  File "lmdeploy/pytorch/engine/engine_loop.py", line 690, in wait_tasks
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB."""


class FakeLmdeploy(fake_engine.FakeEngine):
    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.text())
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if text.startswith("Which colours are there?"):
            log("session=1, finished")
            assert FAULT != "no-picture" or content[0]["type"] == "image_url"
            return self._colours(body["model"])
        if text == "fault out-of-memory":
            print(OUT_OF_MEMORY, flush=True)
            await asyncio.sleep(3600)  # its process lives on
        if text == "fault stall":
            request.app["stalled"] = True
            await asyncio.sleep(3600)
        return await super()._answer(request)

    def _colours(self, model: str) -> web.Response:
        mode, _, given = FAULT.partition(" ")
        if model != self.name:
            number = {"adapter-lazy": -0.25, "adapter-broken": None}.get(model, -0.75)
            whole = self._whole("red and blue", 3)
            whole["choices"][0]["logprobs"] = {"content": [{"token": "red", "logprob": number, "top_logprobs": []}]}
            return web.json_response(whole)
        if mode == "wrong-status":
            return web.json_response({"object": "error", "message": given, "code": 500}, status=500)
        text = given if mode == "wrong" else "red and blue"
        whole = self._whole(text, 3)
        number = None if mode == "not-finite" else -0.25
        whole["choices"][0]["logprobs"] = {"content": [{"token": "red", "logprob": number, "top_logprobs": []}]}
        return web.json_response(whole)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "lmdeploy"}]}
        )

    async def health(self, request: web.Request) -> web.Response:
        if request.app.get("stalled"):
            return web.json_response({"status": "unhealthy"}, status=503)
        return await super().health(request)


def log(message: str) -> None:
    print(f"2026-11-21 10:00:00,000 - lmdeploy - INFO - base.py:420 - {message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server-port", type=int)
    parser.add_argument("--model-name")
    parser.add_argument("--api-keys")
    given = parser.parse_known_args(sys.argv[4:])[0]
    print("arguments:", json.dumps(sys.argv[1:]), flush=True)
    print("threads:", os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS"), flush=True)
    pause = float(os.environ.get("FAKE_LMDEPLOY_PAUSE", "0"))
    log("input backend=pytorch, backend_config=PytorchEngineConfig(dtype='auto')")
    if FAULT in START:
        time.sleep(pause)
        print(START[FAULT], flush=True)
        sys.exit(1)
    log("Building Model.")
    print("\rLoading weights from safetensors:   0%|  | 0/1", end="\r", flush=True)
    time.sleep(pause)
    log("Updating configs.")
    log("Building GraphRunner and warmup ops, please waiting.")
    process = multiprocessing.get_context("spawn").Process(target=lmdeploy.engine_process)  # as the real one's engine
    process.start()
    process.join()
    log("Building CacheEngine with config: ")
    print(
        "CacheConfig(max_batches=7, block_size=64, num_cpu_blocks=0, num_gpu_blocks=1322, window_size=-1).", flush=True
    )
    log("Warming up model.")
    log("Engine warmup completed in 1.00 seconds.")
    fake_engine.KEY = given.api_keys
    engine = FakeLmdeploy(given.model_name)
    app = web.Application(client_max_size=128 * 1024 * 1024)
    app.add_routes(
        [
            web.get("/v1/models", engine.models),
            web.get("/health", engine.health),
            web.post("/v1/chat/completions", engine.chat),
            web.post("/abort_request", engine.abort),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=given.server_port, print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
