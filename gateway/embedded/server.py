"""The HTTP side of the embedded engine, and its command line."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.embedded import protocol
from gateway.embedded.answers import GENERATION_FAILED, Answer, TextAnswer
from gateway.embedded.metrics import Metrics
from gateway.errors import ApiError, bad_request
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

if TYPE_CHECKING:
    from gateway.embedded.engine import Engine, Row


MAX_BODY_BYTES = 512 * 1024 * 1024
T = TypeVar("T")


class Service:
    """One model's server: loads it in a thread of its own, then generates there."""

    def __init__(self, folder: ModelFolder, name: str, *, max_batch_size: int, dtype: str, key: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.max_batch_size = max_batch_size
        self.metrics = Metrics()
        self.engine: Engine | None = None
        self.failure: str | None = None
        self.created = int(time.time())
        self.workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prompt")
        self.server: uvicorn.Server | None = None
        self.app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
            ],
            middleware=[Middleware(RequireKey, key=key)],
            exception_handlers={
                ApiError: api_error,
                HTTPException: http_error,
                ClientDisconnect: client_gone,
                Exception: unexpected_error,
            },
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._load_and_run, args=(loop,), name="generate", daemon=True)
        thread.start()
        watch = asyncio.create_task(self._stop_with_parent())
        yield
        watch.cancel()
        if self.engine is not None:
            self.engine.stop()
            await asyncio.to_thread(thread.join, 10)

    def _load_and_run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            from gateway.embedded.engine import Engine
            from gateway.embedded.model import load_model

            engine = Engine(load_model(self.folder, self.dtype), self.max_batch_size, self.metrics, loop)
            asyncio.run_coroutine_threadsafe(self._warm_up(engine), loop)
            engine.run()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._fail(reason)

    async def _warm_up(self, engine: Engine) -> None:
        """The first call of everything is slow; it also proves that the model answers at all."""
        try:
            message = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
            request = protocol.GenerationRequest([message], protocol.SamplingParams(temperature=0), max_tokens=2)
            rows = await asyncio.get_running_loop().run_in_executor(self.workers, engine.make_rows, request)
            engine.submit(rows)
            while True:
                piece = await rows[0].pieces.get()
                if piece.error:
                    raise RuntimeError("the model failed on its first prompt")
                if piece.finish_reason:
                    break
        except Exception as error:
            self._fail(str(error))
            return
        self.engine = engine

    def _fail(self, reason: str) -> None:
        self.failure = f"Cannot serve {self.folder.path}: {reason}"
        if self.server is not None:
            self.server.should_exit = True

    async def _stop_with_parent(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:  # noqa: ASYNC110 (nothing tells a process that its parent is gone)
            await asyncio.sleep(0.5)
        if self.server is not None:
            self.server.should_exit = self.server.force_exit = True

    async def health(self, request: Request) -> Response:
        ready = self.engine is not None
        return json_response({"status": "healthy" if ready else "loading"}, 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def models(self, request: Request) -> Response:
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "lensmith"}
        return json_response({"object": "list", "data": [model | {"max_model_len": self._ready().loaded.context}]})

    async def chat(self, request: Request) -> Response:
        chat = await self._parse(request, protocol.CHAT)
        return await self._answer(request, chat, Answer(self.name, chat))

    async def complete(self, request: Request) -> Response:
        text = await self._parse(request, protocol.TEXT)
        return await self._answer(request, text, TextAnswer(self.name, text))

    async def tokenize(self, request: Request) -> Response:
        """The prompt's tokens, images among them, for either kind of request; in the shape of vLLM's /tokenize."""
        engine = self._ready()
        body = decode_json(await read_body(request))
        form = protocol.TEXT if isinstance(body, dict) and body.get("prompt") is not None else protocol.CHAT
        parsed = self._check(body, form)
        ids = await until_gone(
            request, asyncio.get_running_loop().run_in_executor(self.workers, engine.prompt_ids, parsed)
        )
        return json_response({"count": len(ids), "max_model_len": engine.loaded.context, "tokens": ids})

    async def _parse(self, request: Request, form: protocol.Form) -> protocol.GenerationRequest:
        self._ready()
        return self._check(decode_json(await read_body(request)), form)

    def _check(self, body: object, form: protocol.Form) -> protocol.GenerationRequest:
        defaults = self._ready().loaded.defaults
        return protocol.parse(body, form, model=self.name, defaults=defaults, max_n=self.max_batch_size)

    async def _answer(self, request: Request, chat: protocol.GenerationRequest, answer: Answer) -> Response:
        engine = self._ready()
        rows: list[Row] = []
        try:
            engine.waiting.preparing(1)
            try:
                loop = asyncio.get_running_loop()
                rows = await until_gone(request, loop.run_in_executor(self.workers, engine.make_rows, chat))
                engine.submit(rows)
            finally:
                engine.waiting.preparing(-1)
            answer.prompt_tokens = rows[0].prompt.length
            if not chat.stream:
                while answer.open_choices:
                    answer.add(await until_gone(request, rows[0].pieces.get()))
                return json_response(answer.completion())
            # Only now: what fails before the first token is an HTTP status, not an event in a stream.
            first = await until_gone(request, rows[0].pieces.get())
            if first.error:
                raise GENERATION_FAILED
            return AnswerStream(answer.events(first, rows[0].pieces), engine, rows)
        except BaseException:
            engine.abort(rows)
            raise

    def _ready(self) -> Engine:
        if self.engine is None:
            raise ApiError(503, "The model is still loading; try again.", code="model_loading", retry_after=2)
        return self.engine


class AnswerStream(StreamingResponse):
    """Server-sent events; however the response ends, what is still being generated for it is given up."""

    def __init__(self, events: AsyncIterator[bytes], engine: Engine, rows: list[Row]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._engine, self._rows = engine, rows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.abort(self._rows)


class RequireKey:
    """Answers 401 to everything but /health without `Authorization: Bearer KEY`, if there is a key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self.expected = f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.expected is not None and scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                error = ApiError(401, "The engine's key is missing or wrong.", code="invalid_api_key")
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Raises ClientDisconnect, with `work` cancelled, if the client goes first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body has been read, so all that can come is a disconnect
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()


async def read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body has more than {MAX_BODY_BYTES} bytes.", code="request_too_large")
    return bytes(body)


def decode_json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise bad_request("The body is not valid JSON.", None, "invalid_json") from None


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


async def api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return error_response(
        ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:100]}", code=code)
    )


async def client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's status for it; nobody reads it


async def unexpected_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "The engine failed on this request; its log says why.", code="engine_error"))


def main() -> None:
    """The command line. Exits with 1 and one sentence on stderr if the model cannot be loaded or the port is taken."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.embedded", description="Serve a model folder on this machine."
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free port, which is printed")
    parser.add_argument("--served-model-name", help="default: the folder's name")
    parser.add_argument("--max-batch-size", type=int, default=8, help="most choices in a batch, and the largest n")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: float32 on a CPU, the folder's own on a GPU",
    )
    options = parser.parse_args()
    if options.max_batch_size < 1:
        parser.error("--max-batch-size must be at least 1")
    try:
        folder = ModelFolder.open(options.model_dir)
        listener = socket.create_server((options.host, options.port))
    except ModelFolderError as error:
        sys.exit(f"Error: {error}")
    except (OSError, OverflowError) as error:
        sys.exit(f"Error: cannot listen on {options.host}:{options.port}: {error}.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Torch's threads otherwise spin while they wait for work and take the cores from the gateway and other processes:
    # on 2 busy cores, waiting passively answered 3 to 6 times as many requests/s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    service = Service(
        folder,
        options.served_model_name or folder.name,
        max_batch_size=options.max_batch_size,
        dtype=options.dtype,
        key=os.environ.get("LENSMITH_ENGINE_KEY", ""),
    )
    config = uvicorn.Config(
        service.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    service.server = uvicorn.Server(config)
    print(f"Listening on http://{options.host}:{listener.getsockname()[1]}", flush=True)
    service.server.run(sockets=[listener])
    if service.failure is not None:
        sys.stderr.write(f"Error: {service.failure}\n")
    # Not sys.exit: a thread may still be inside torch, and the interpreter would wait for it or crash on its way out.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if service.failure else 0)
