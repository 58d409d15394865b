"""The embedded engine's HTTP routes around a model that generates in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.embedded import protocol
from gateway.embedded.choices import GENERATION_FAILED, ChatCompletion, TextCompletion
from gateway.embedded.http import (
    RequireKey,
    api_error,
    client_disconnected,
    decode_json,
    http_error,
    json_response,
    read_body,
    unexpected_error,
    unless_disconnected,
)
from gateway.embedded.metrics import EmbeddedMetrics
from gateway.errors import ApiError
from modelfiles.folder.model_folder import ModelFolder

if TYPE_CHECKING:  # torch is imported in the generating thread, so that the server listens at once
    from gateway.embedded.generation.batcher import Batcher
    from gateway.embedded.generation.sequences import RunningSequence


class EmbeddedServer:
    """One model's server: loads it in a thread of its own, then generates there."""

    def __init__(
        self,
        folder: ModelFolder,
        name: str,
        *,
        adapters: Mapping[str, Path],
        max_batch_size: int,
        dtype: str,
        key: str,
    ) -> None:
        self.folder, self.adapters, self.dtype = folder, adapters, dtype
        self.names = [name, *adapters]
        self.max_batch_size = max_batch_size
        self.metrics = EmbeddedMetrics()
        self.batcher: Batcher | None = None
        self.failure: str | None = None
        self.created = int(time.time())
        self.workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prompt")
        self.uvicorn: uvicorn.Server | None = None
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
                ClientDisconnect: client_disconnected,
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
        if self.batcher is not None:
            self.batcher.stop()
            await asyncio.to_thread(thread.join, 10)

    def _load_and_run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            from gateway.embedded.generation.batcher import Batcher
            from gateway.embedded.generation.model import load_model

            batcher = Batcher(
                load_model(self.folder, self.dtype, self.adapters), self.max_batch_size, self.metrics, loop
            )
            asyncio.run_coroutine_threadsafe(self._warm_up(batcher), loop)
            batcher.run()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._fail(reason)

    async def _warm_up(self, batcher: Batcher) -> None:
        """Answers a first prompt, because first calls are slow, and because it proves that the model works."""
        try:
            message = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
            request = protocol.GenerationRequest(
                self.names[0], [message], protocol.SamplingParams(temperature=0), max_tokens=2
            )
            sequences = await asyncio.get_running_loop().run_in_executor(self.workers, batcher.make_sequences, request)
            batcher.submit(sequences)
            while True:
                piece = await sequences[0].pieces.get()
                if piece.error:
                    raise RuntimeError("the model failed on its first prompt")
                if piece.finish_reason:
                    break
        except Exception as error:
            self._fail(str(error))
            return
        self.batcher = batcher

    def _fail(self, reason: str) -> None:
        self.failure = f"Cannot serve {self.folder.path}: {reason}"
        if self.uvicorn is not None:
            self.uvicorn.should_exit = True

    async def _stop_with_parent(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:  # noqa: ASYNC110 (nothing tells a process that its parent is gone)
            await asyncio.sleep(0.5)
        if self.uvicorn is not None:
            self.uvicorn.should_exit = self.uvicorn.force_exit = True

    async def health(self, request: Request) -> Response:
        ready = self.batcher is not None
        return json_response({"status": "healthy" if ready else "loading"}, 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def models(self, request: Request) -> Response:
        model = {"object": "model", "created": self.created, "owned_by": "lensmith"}
        model["max_model_len"] = self._ready().loaded.context
        return json_response({"object": "list", "data": [{"id": name, **model} for name in self.names]})

    async def chat(self, request: Request) -> Response:
        chat = await self._parse(request, protocol.CHAT)
        return await self._answer(request, chat, ChatCompletion(chat, self._fingerprint(chat)))

    async def complete(self, request: Request) -> Response:
        text = await self._parse(request, protocol.TEXT)
        return await self._answer(request, text, TextCompletion(text, self._fingerprint(text)))

    async def tokenize(self, request: Request) -> Response:
        """The prompt's tokens, images among them, for either kind of request; in the shape of vLLM's /tokenize."""
        batcher = self._ready()
        body = decode_json(await read_body(request))
        form = protocol.TEXT if isinstance(body, dict) and body.get("prompt") is not None else protocol.CHAT
        parsed = self._check(body, form)
        ids = await unless_disconnected(
            request, asyncio.get_running_loop().run_in_executor(self.workers, batcher.prompt_ids, parsed)
        )
        return json_response({"count": len(ids), "max_model_len": batcher.loaded.context, "tokens": ids})

    async def _parse(self, request: Request, form: protocol.Form) -> protocol.GenerationRequest:
        self._ready()
        return self._check(decode_json(await read_body(request)), form)

    def _check(self, body: object, form: protocol.Form) -> protocol.GenerationRequest:
        defaults = self._ready().loaded.defaults
        return protocol.parse(body, form, models=self.names, defaults=defaults, max_n=self.max_batch_size)

    def _fingerprint(self, request: protocol.GenerationRequest) -> str:
        """What answers: the folder's name and, with an adapter, the beginning of its file's sha256."""
        digest = self._ready().loaded.adapters.digests.get(request.model)
        return self.folder.name if digest is None else f"{self.folder.name}+{digest}"

    async def _answer(self, request: Request, chat: protocol.GenerationRequest, completion: ChatCompletion) -> Response:
        batcher = self._ready()
        sequences: list[RunningSequence] = []
        try:
            batcher.waiting.preparing(1)
            try:
                loop = asyncio.get_running_loop()
                prepared = loop.run_in_executor(self.workers, batcher.make_sequences, chat)
                sequences = await unless_disconnected(request, prepared)
                batcher.submit(sequences)
            finally:
                batcher.waiting.preparing(-1)
            completion.prompt_tokens = sequences[0].prompt.length
            if not chat.stream:
                while completion.open_choices:
                    completion.add(await unless_disconnected(request, sequences[0].pieces.get()))
                return json_response(completion.as_json())
            # The response begins with the first piece, so that an earlier failure has an HTTP status of its own.
            first = await unless_disconnected(request, sequences[0].pieces.get())
            if first.error:
                raise GENERATION_FAILED
            return AnswerStream(completion.events(first, sequences[0].pieces), batcher, sequences)
        except BaseException:
            batcher.abort(sequences)
            raise

    def _ready(self) -> Batcher:
        if self.batcher is None:
            raise ApiError(503, "The model is still loading; try again.", code="model_loading", retry_after=2)
        return self.batcher


class AnswerStream(StreamingResponse):
    """Server-sent events. However the response ends, sequences that are still being generated for it are aborted."""

    def __init__(self, events: AsyncIterator[bytes], batcher: Batcher, sequences: list[RunningSequence]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._batcher, self._sequences = batcher, sequences

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._batcher.abort(self._sequences)
