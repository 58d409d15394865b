"""Answers that grow piece by piece, in OpenAI's words: chat completions and text completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from gateway.embedded import protocol
from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.embedded.engine import Piece


GENERATION_FAILED = ApiError(500, "Generation failed in the engine; its log says why.", code="engine_error")


class Answer:
    """A chat completion: https://platform.openai.com/docs/api-reference/chat/object."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, model: str, request: protocol.GenerationRequest) -> None:
        self.request = request
        self.prompt_tokens = 0
        self.open_choices = request.n
        self._head = {"id": f"{self.id_prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._texts = [""] * request.n
        self._log_probs: list[list[protocol.TokenLogProb]] = [[] for _ in range(request.n)]
        self._tokens = [0] * request.n
        self._reasons: list[str | None] = [None] * request.n

    def add(self, piece: Piece) -> None:
        """Raises ApiError 500 if generation failed."""
        if piece.error:
            raise GENERATION_FAILED
        self._texts[piece.choice] += piece.text
        self._log_probs[piece.choice] += piece.log_probs
        self._tokens[piece.choice] = piece.tokens
        self._reasons[piece.choice] = piece.finish_reason
        self.open_choices -= piece.finish_reason is not None

    def usage(self) -> dict[str, int]:
        return protocol.usage_json(self.prompt_tokens, sum(self._tokens))

    def completion(self) -> dict[str, Any]:
        wanted = self.request.top_logprobs is not None
        choices = [
            {
                "index": i,
                **self.whole(text),
                "logprobs": self.log_probs(self._log_probs[i], 0) if wanted else None,
                "finish_reason": self._reasons[i],
            }
            for i, text in enumerate(self._texts)
        ]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage()}

    async def events(self, piece: Piece, pieces: asyncio.Queue[Piece]) -> AsyncIterator[bytes]:
        """Server-sent events, beginning with the piece that has already come."""
        for i in range(self.request.n):
            opening = self.opening()
            if opening is not None:
                yield self._choice(i, opening)
        while True:
            if piece.error:
                yield b"data: " + GENERATION_FAILED.body() + b"\n\n"
                break
            offset = len(self._texts[piece.choice])
            self.add(piece)
            log_probs = self.log_probs(piece.log_probs, offset) if piece.log_probs else None
            if piece.text or log_probs:
                yield self._choice(piece.choice, self.delta(piece.text), log_probs)
            if piece.finish_reason:
                yield self._choice(piece.choice, self.closing(), finish_reason=piece.finish_reason)
            if not self.open_choices:
                if self.request.include_usage:
                    yield self._chunk([], self.usage())
                break
            piece = await pieces.get()
        yield b"data: [DONE]\n\n"

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def closing(self) -> dict[str, Any]:
        return {"delta": {}}

    def log_probs(self, entries: Sequence[protocol.TokenLogProb], offset: int) -> dict[str, Any]:
        """`offset`: how many characters of the answer came before."""
        return protocol.log_probs_json(entries)

    def _choice(
        self,
        index: int,
        fields: dict[str, Any],
        log_probs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        return self._chunk([{"index": index, **fields, "logprobs": log_probs, "finish_reason": finish_reason}])

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if self.request.include_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


class TextAnswer(Answer):
    """A text completion: https://platform.openai.com/docs/api-reference/completions/object."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def opening(self) -> dict[str, Any] | None:
        return None

    def delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def closing(self) -> dict[str, Any]:
        return {"text": ""}

    def log_probs(self, entries: Sequence[protocol.TokenLogProb], offset: int) -> dict[str, Any]:
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry.text)
        return {
            "tokens": [entry.text for entry in entries],
            "token_logprobs": [protocol.finite(entry.log_prob) for entry in entries],
            "top_logprobs": [
                {token.decode("utf-8", "replace"): protocol.finite(value) for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": offsets,
        }
