"""Answers as Anthropic's messages: one object, or the events that build it up.

The events and their order: https://docs.anthropic.com/en/docs/build-with-claude/streaming.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from gateway.api.translation import thought
from gateway.contract.fields import Object
from gateway.errors import ApiError
from gateway.streaming.sse import CONTENT_TYPE

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessageWriter:
    """One message: its blocks in the order in which they began."""

    content_type = CONTENT_TYPE
    comment = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, model: str) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model
        self._reason = "stop"
        self._usage: Object = {}
        self._begun = False
        self._block = ""  # the type of the block that is open
        self._index = -1  # of the last block
        self._call: object = None  # index of the tool call in the chat's delta whose block is open

    def answer(self, completion: Object) -> bytes:
        choice = completion["choices"][0] if completion["choices"] else {}
        message = choice.get("message") or {}
        self._take(completion, choice)
        content: list[Object] = []
        if thinking := thought(message):
            content.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if message.get("content"):
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or []:
            function = call.get("function") or {}
            content.append({**_tool_use(call), "input": _arguments(function.get("arguments"))})
        return orjson.dumps(self._message(content, self._stop_reason(), self._counts()))

    def chunk(self, chunk: Object) -> bytes:
        choices = chunk.get("choices") or []
        choice = choices[0] if choices else {}
        self._take(chunk, choice)
        delta = choice.get("delta") or {}
        events = self._begin()
        if thinking := thought(delta):
            events += self._open({"type": "thinking", "thinking": "", "signature": ""})
            events += self._delta({"type": "thinking_delta", "thinking": thinking})
        if delta.get("content"):
            events += self._open({"type": "text", "text": ""})
            events += self._delta({"type": "text_delta", "text": delta["content"]})
        for call in delta.get("tool_calls") or []:
            events += self._tool_call(call)
        return events

    def end(self) -> bytes:
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        return (
            self._begin()
            + self._close()
            + _event("message_delta", delta=delta, usage=self._counts())
            + _event("message_stop")
        )

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: %s\n\n" % error.anthropic_body()

    def _tool_call(self, call: Object) -> bytes:
        """A piece of a tool call: the first has its name, all may have some of its arguments."""
        index, function = call.get("index", 0), call.get("function") or {}
        events = b""
        if self._block != "tool_use" or self._call != index:
            events = self._close() + self._open({**_tool_use(call), "input": {}})
            self._call = index
        if function.get("arguments"):
            events += self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
        return events

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return _event("message_start", message=self._message([], None, self._counts()))

    def _open(self, block: Object) -> bytes:
        """The events that begin a block, unless one of its type is open."""
        if self._block == block["type"]:
            return b""
        events = self._close()
        self._block = block["type"]
        self._index += 1
        return events + _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if not self._block:
            return b""
        self._block = ""
        return _event("content_block_stop", index=self._index)

    def _delta(self, delta: Object) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _take(self, payload: Object, choice: Object) -> None:
        self._usage = payload.get("usage") or self._usage
        self._reason = choice.get("finish_reason") or self._reason

    def _stop_reason(self) -> str:
        return STOP_REASONS.get(self._reason, "end_turn")

    def _counts(self) -> Object:
        usage = self._usage
        return {"input_tokens": usage.get("prompt_tokens", 0), "output_tokens": usage.get("completion_tokens", 0)}

    def _message(self, content: list[Object], reason: str | None, usage: Object) -> Object:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }


class CountWriter:
    """The answer of count_tokens, of that of /tokenize. It has no streams."""

    content_type = CONTENT_TYPE
    comment = b""

    def answer(self, completion: Object) -> bytes:
        return orjson.dumps({"input_tokens": completion["count"]})

    def chunk(self, chunk: Object) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""

    def error(self, error: ApiError) -> bytes:
        return error.anthropic_body()


def _event(name: str, /, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))


def _tool_use(call: Object) -> Object:
    function = call.get("function") or {}
    name = function.get("name") or ""
    return {"type": "tool_use", "id": call.get("id") or f"toolu_{secrets.token_hex(12)}", "name": name}


def _arguments(written: str | None) -> Object:
    """OpenAI's arguments are JSON in a string, Anthropic's an object."""
    try:
        arguments = orjson.loads(written or "{}")
    except orjson.JSONDecodeError:
        return {}
    return arguments if isinstance(arguments, dict) else {}
