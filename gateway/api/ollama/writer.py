"""Answers in Ollama's words: one JSON object, or a stream of them, each on a line of its own."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import orjson

from gateway.api.translation import Object, thought
from gateway.errors import ApiError


class OllamaWriter:
    """What /api/chat and /api/generate have in common. Durations are in nanoseconds, as Ollama's are.

    How long a whole answer's prompt took is not known, so all of its time is `eval_duration`.
    """

    content_type = b"application/x-ndjson"
    comment = b""  # its clients parse every line

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = time.monotonic()
        self._first: float | None = None
        self._usage: Object = {}
        self._reason = "stop"
        self._calls: dict[int, Object] = {}

    def text(self, content: str, calls: list[Object], thinking: str = "") -> Object:
        """The fields that hold the answer's text, and what was thought before it."""
        raise NotImplementedError

    def loaded(self) -> bytes:
        """The answer to a request without a prompt, which asks Ollama to load the model: it is loaded."""
        return self._line(self.text("", []), done=True, done_reason="load")

    def answer(self, completion: Object) -> bytes:
        choice = completion["choices"][0] if completion["choices"] else {}
        message = choice.get("message") or {}
        self._take(completion, choice)
        calls = [call["function"] for call in message.get("tool_calls") or []]
        fields = self.text(message.get("content") or "", [_called(call) for call in calls], thought(message))
        return self._line({**fields, **_log_probs(choice)}, **self._last())

    def chunk(self, chunk: Object) -> bytes:
        choices = chunk.get("choices") or []
        choice = choices[0] if choices else {}
        self._take(chunk, choice)
        delta = choice.get("delta") or {}
        for call in delta.get("tool_calls") or []:
            self._collect(call)
        content, thinking = delta.get("content") or "", thought(delta)
        if not content and not thinking:
            return b""
        if self._first is None:
            self._first = time.monotonic()
        return self._line({**self.text(content, [], thinking), **_log_probs(choice)}, done=False) + b"\n"

    def end(self) -> bytes:
        lines = b""
        if self._calls:
            lines = self._line(self.text("", [_called(call) for call in self._calls.values()]), done=False) + b"\n"
        return lines + self._line(self.text("", []), **self._last()) + b"\n"

    def error(self, error: ApiError) -> bytes:
        return error.ollama_body() + b"\n"

    def _take(self, payload: Object, choice: Object) -> None:
        self._usage = payload.get("usage") or self._usage
        reason = choice.get("finish_reason")
        if reason:
            self._reason = "length" if reason == "length" else "stop"  # Ollama has no other for a call of tools

    def _collect(self, call: Object) -> None:
        """A tool call comes in pieces, Ollama's clients want it whole."""
        known = self._calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
        function = call.get("function") or {}
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""

    def _last(self) -> Object:
        now = time.monotonic()
        first = self._started if self._first is None else self._first
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": _nanoseconds(now - self._started),
            "load_duration": 0,
            "prompt_eval_count": self._usage.get("prompt_tokens", 0),
            "prompt_eval_duration": _nanoseconds(first - self._started),
            "eval_count": self._usage.get("completion_tokens", 0),
            "eval_duration": _nanoseconds(now - first),
        }

    def _line(self, fields: Object, **more: Any) -> bytes:
        created = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        return orjson.dumps({"model": self._model, "created_at": created, **fields, **more})


class ChatWriter(OllamaWriter):
    """/api/chat."""

    def text(self, content: str, calls: list[Object], thinking: str = "") -> Object:
        more = {**({"thinking": thinking} if thinking else {}), **({"tool_calls": calls} if calls else {})}
        return {"message": {"role": "assistant", "content": content, **more}}


class GenerateWriter(OllamaWriter):
    """/api/generate."""

    def text(self, content: str, calls: list[Object], thinking: str = "") -> Object:
        return {"response": content, **({"thinking": thinking} if thinking else {})}


def _called(function: Object) -> Object:
    """A tool call: OpenAI's arguments are JSON in a string, Ollama's an object."""
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        arguments = {}
    return {"function": {"name": function.get("name", ""), "arguments": arguments}}


def _log_probs(choice: Object) -> Object:
    entries = (choice.get("logprobs") or {}).get("content")
    return {"logprobs": entries} if entries else {}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
