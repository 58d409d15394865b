"""Gives an engine's answer the fields that strict OpenAI clients need, where the engine leaves them out or differs.

Which clients fail without which field: openai-node wants a role in the first delta, `choices: []` beside the usage and
a finish_reason; pydantic-ai wants id, object, created and model; the Agents SDK wants every choice's index; others
fail when the usage that they asked for is missing.
"""

from __future__ import annotations

import time
from typing import Any

from gateway.errors import ApiError, engine_lost

Object = dict[str, Any]

FINISH_REASONS = frozenset(("stop", "length", "tool_calls", "content_filter", "function_call"))
# Other engines' words for them.
FINISH_WORDS = {"max_tokens": "length", "max_length": "length", "tool_use": "tool_calls", "tool_call": "tool_calls"}
# LMDeploy's words for an answer that it did not complete.
BROKEN = frozenset(("error", "abort", "parse_error"))
# What an answer may hold beside its text. vLLM calls a reasoning model's thoughts `reasoning`.
OTHER_CONTENT = ("reasoning_content", "reasoning", "tool_calls", "refusal")
MAX_TIME = 2**53  # seconds; JSON readers hold whole numbers up to here exactly
# About the length of a token of English text in UTF-8.
BYTES_PER_TOKEN = 4


def estimated_tokens(size: int) -> int:
    """Tokens of a text of `size` bytes, for engines that do not count them."""
    return -(-size // BYTES_PER_TOKEN)


class Normaliser:
    """Normalises one answer, streamed or whole.

    model: the name that the client asked for; n: choices it asked for; prompt_tokens: an estimate, used if the engine
    gives no usage; chat: False for text completions.
    """

    def __init__(self, request_id: str, model: str, n: int = 1, prompt_tokens: int = 0, chat: bool = True) -> None:
        self._head: Object = {
            "id": ("chatcmpl-" if chat else "cmpl-") + request_id,
            "object": ("chat.completion" if chat else "text_completion"),
            "created": int(time.time()),
            "model": model,
        }
        self._chat = chat
        self._n = n
        self._prompt_tokens = prompt_tokens
        self._begun: set[int] = set()  # choices with a first delta
        self._finished: set[int] = set()
        self._called_tools: set[int] = set()
        self._size = 0  # bytes of text in the answer
        self._chunks = 0  # with content, so far
        self._first = True
        self.repaired = False

    @property
    def finished(self) -> bool:
        """Whether every choice of a stream has its finish_reason."""
        return len(self._finished) >= self._n

    @property
    def all_begun(self) -> bool:
        """Whether every choice of a stream has had its first delta."""
        return len(self._begun) >= self._n

    def chunk(self, payload: Object) -> bool:
        """Normalise a stream's chunk in place; whether it holds a part of the answer.

        `repaired` then says whether the chunk was changed. Raises ApiError for a broken answer.
        """
        self.repaired = False
        if self._first:
            self._first = False
            self._take_head(payload)
            if self._chat:
                self._head["object"] = "chat.completion.chunk"
        self._set_head(payload)
        if not isinstance(payload.get("choices"), list):
            self._set(payload, "choices", [])
        has_content = False
        for position, choice in enumerate(payload["choices"]):
            if isinstance(choice, dict):
                has_content |= self._chunk_choice(choice, position)
        self._chunks += has_content
        return has_content

    def passed(self, chunks: int) -> None:
        """Count chunks with a part of the answer that needed no look."""
        self._chunks += chunks

    def _set(self, fields: Object, name: str, value: object) -> None:
        fields[name] = value
        self.repaired = True

    def _set_head(self, payload: Object) -> None:
        for name, value in self._head.items():
            found = payload.get(name)
            if found is not value and (found != value or type(found) is not type(value)):
                self._set(payload, name, value)

    def _chunk_choice(self, choice: Object, position: int) -> bool:
        index = self._set_index(choice, position)
        fields = choice
        if self._chat:
            if not isinstance(choice.get("delta"), dict):
                self._set(choice, "delta", {})
            fields = choice["delta"]
            if index not in self._begun and not fields.get("role"):
                self._set(fields, "role", "assistant")
        self._begun.add(index)
        if fields.get("tool_calls"):
            self._called_tools.add(index)
        reason = self._finish_reason(choice.get("finish_reason"))
        if choice.get("finish_reason") != reason:
            self._set(choice, "finish_reason", reason)
        if reason is not None:
            self._finished.add(index)
        text = fields.get("content" if self._chat else "text")
        self._size += len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
        return bool(text) or any(fields.get(name) for name in OTHER_CONTENT)

    def missing_finish(self) -> Object | None:
        """The chunk with the finish reasons that the engine left out; None if it left out none."""
        missing = sorted(set(range(self._n)) - self._finished)
        if not missing:
            return None
        self._finished.update(missing)
        choices: list[Object] = []
        for index in missing:
            choice: Object = {"index": index, "delta": {}} if self._chat else {"index": index, "text": ""}
            if self._chat and index not in self._begun:
                choice["delta"] = {"role": "assistant", "content": ""}
            choices.append({**choice, "finish_reason": "tool_calls" if index in self._called_tools else "stop"})
        return {**self._head, "choices": choices}

    def estimated_usage(self) -> Object:
        """The usage that the engine left out."""
        completion = max(self._chunks, estimated_tokens(self._size))
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }

    def usage_chunk(self, usage: Object) -> Object:
        return {**self._head, "choices": [], "usage": usage}

    def whole(self, payload: Object) -> None:
        """Normalise a whole answer in place. Raises ApiError for a broken one."""
        self.repaired = False
        self._take_head(payload)
        self._set_head(payload)
        for position, choice in enumerate(payload["choices"]):
            if not isinstance(choice, dict):
                raise ApiError(502, "The engine's answer is not a completion.", code="engine_error")
            self._set_index(choice, position)
            fields = choice
            if self._chat:
                if not isinstance(choice.get("message"), dict):
                    self._set(choice, "message", {})
                fields = choice["message"]
                if fields.get("role") != "assistant":
                    self._set(fields, "role", "assistant")
                if "content" not in fields:
                    self._set(fields, "content", None)
            text = fields.get("content" if self._chat else "text")
            self._size += len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
            given = choice.get("finish_reason")
            reason = self._finish_reason(given) or ("tool_calls" if fields.get("tool_calls") else "stop")
            if reason != given:
                self._set(choice, "finish_reason", reason)
        if not isinstance(payload.get("usage"), dict):
            self._set(payload, "usage", self.estimated_usage())

    def _set_index(self, choice: Object, position: int) -> int:
        index = choice.get("index")
        if type(index) is not int or index < 0:
            index = position
            self._set(choice, "index", index)
        return index

    def _take_head(self, payload: Object) -> None:
        """Keep the id and the time that the engine gave, if they are sound; all chunks get the first one's."""
        if isinstance(payload.get("id"), str) and payload["id"]:
            self._head["id"] = payload["id"]
        created = payload.get("created")
        if isinstance(created, int | float) and not isinstance(created, bool) and 0 < created < MAX_TIME:
            self._head["created"] = int(created)

    def _finish_reason(self, given: object) -> str | None:
        if given is None or given == "":
            return None
        if not isinstance(given, str):
            return "stop"
        if given in BROKEN:
            raise engine_lost(502, f"The engine did not complete the answer (finish_reason '{given}').")
        return given if given in FINISH_REASONS else FINISH_WORDS.get(given, "stop")
