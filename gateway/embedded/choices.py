"""Completions that grow piece by piece, in OpenAI's form: chat completions and text completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from gateway.embedded import protocol
from gateway.embedded.tools import ToolCall, ToolCallParser
from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.embedded.generation.sequences import Piece


GENERATION_FAILED = ApiError(500, "Generation failed in the engine; its log says why.", code="engine_error")


@dataclass
class GeneratedChoice:
    """The part of one choice that has been generated so far. tokens: how many, those without text included."""

    text: str = ""
    log_probs: list[protocol.TokenLogProb] = field(default_factory=list)
    tokens: int = 0
    finish_reason: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    parser: ToolCallParser | None = None

    def add_text(self, text: str, finish_reason: str | None) -> tuple[str, list[ToolCall]]:
        """Adds generated text and, at the end, why it ended; returns the new text and the new tool calls."""
        calls: list[ToolCall] = []
        if self.parser is not None:
            text, calls = self.parser.feed(text)
            if finish_reason is not None:
                text += self.parser.finish()
        self.text += text
        self.tool_calls += calls
        self.finish_reason = "tool_calls" if finish_reason == "stop" and self.tool_calls else finish_reason
        return text, calls


class ChatCompletion:
    """A chat completion: https://platform.openai.com/docs/api-reference/chat/object.

    fingerprint: what weights answer, whatever the name is by which they were asked for.
    """

    id_prefix = "chatcmpl-"
    plain_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, request: protocol.GenerationRequest, fingerprint: str) -> None:
        self.request = request
        self.prompt_tokens = 0
        self.choices = [GeneratedChoice(parser=ToolCallParser() if request.tools else None) for _ in range(request.n)]
        self._head = {
            "id": f"{self.id_prefix}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": fingerprint,
        }

    @property
    def open_choices(self) -> int:
        """How many choices are still being generated."""
        return sum(choice.finish_reason is None for choice in self.choices)

    def add(self, piece: Piece) -> tuple[str, list[ToolCall]]:
        """Adds a piece to its choice; returns the new text and tool calls. Raises ApiError 500 if generation failed."""
        if piece.error:
            raise GENERATION_FAILED
        choice = self.choices[piece.choice]
        choice.log_probs += piece.log_probs
        choice.tokens = piece.tokens
        return choice.add_text(piece.text, piece.finish_reason)

    def usage(self) -> dict[str, int]:
        return protocol.usage_json(self.prompt_tokens, sum(choice.tokens for choice in self.choices))

    def as_json(self) -> dict[str, Any]:
        """The plain response, once no choice is open."""
        wanted = self.request.top_logprobs is not None
        choices = [
            {
                "index": i,
                **self.result(choice),
                "logprobs": self.log_probs(choice.log_probs, 0) if wanted else None,
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(self.choices)
        ]
        return {**self._head, "object": self.plain_object, "choices": choices, "usage": self.usage()}

    async def events(self, piece: Piece, pieces: asyncio.Queue[Piece]) -> AsyncIterator[bytes]:
        """The streamed response: server-sent events, beginning with the piece that has already come."""
        for i in range(self.request.n):
            opening = self.opening()
            if opening is not None:
                yield self._choice_event(i, opening)
        while True:
            if piece.error:
                yield b"data: " + GENERATION_FAILED.body() + b"\n\n"
                break
            choice = self.choices[piece.choice]
            offset, earlier_calls = len(choice.text), len(choice.tool_calls)
            text, calls = self.add(piece)
            log_probs = self.log_probs(piece.log_probs, offset) if piece.log_probs else None
            if text or log_probs:
                yield self._choice_event(piece.choice, self.delta(text), log_probs)
            for index, call in enumerate(calls, earlier_calls):
                delta = {"tool_calls": [{"index": index, **call.as_json()}]}
                yield self._choice_event(piece.choice, {"delta": delta})
            if choice.finish_reason:
                yield self._choice_event(piece.choice, self.closing(), finish_reason=choice.finish_reason)
            if not self.open_choices:
                if self.request.include_usage:
                    yield self._event([], self.usage())
                break
            piece = await pieces.get()
        yield b"data: [DONE]\n\n"

    def result(self, choice: GeneratedChoice) -> dict[str, Any]:
        """A choice's fields in the plain response."""
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [call.as_json() for call in choice.tool_calls]
        return {"message": message}

    def opening(self) -> dict[str, Any] | None:
        """A choice's fields in the stream's first event for it, if there is one."""
        return {"delta": {"role": "assistant", "content": ""}}

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def closing(self) -> dict[str, Any]:
        """A choice's fields in the event with its finish reason."""
        return {"delta": {}}

    def log_probs(self, entries: Sequence[protocol.TokenLogProb], offset: int) -> dict[str, Any]:
        """The entries in OpenAI's form. offset: how many characters of the choice's text come before them."""
        return protocol.log_probs_json(entries)

    def _choice_event(
        self,
        index: int,
        fields: dict[str, Any],
        log_probs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        return self._event([{"index": index, **fields, "logprobs": log_probs, "finish_reason": finish_reason}])

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if self.request.include_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


class TextCompletion(ChatCompletion):
    """A text completion: https://platform.openai.com/docs/api-reference/completions/object."""

    id_prefix = "cmpl-"
    plain_object = chunk_object = "text_completion"

    def result(self, choice: GeneratedChoice) -> dict[str, Any]:
        return {"text": choice.text}

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
