"""Makes a whole completion of a stream's chunks."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.streaming.sse import event_data, split_events

Object = dict[str, Any]
TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
OBJECTS = {"chat.completion.chunk": "chat.completion"}


class CollectedAnswer:
    """One answer without tool calls, of chunks that are normalised (`Normaliser`) and followed by their usage."""

    def __init__(self) -> None:
        self._head: Object = {}
        self._texts: dict[str, str] = {}
        self._choice: Object = {"index": 0}
        self._is_chat = True

    def feed(self, events: bytes) -> None:
        """Take whole events."""
        for single in split_events(events):
            chunk = event_data(single)
            if isinstance(chunk, dict):
                self._take(chunk)

    def _take(self, chunk: Object) -> None:
        self._head = {**self._head, **{key: value for key, value in chunk.items() if key != "choices"}}
        for choice in chunk["choices"]:
            self._is_chat = "delta" in choice
            for name, text in (choice["delta"] if self._is_chat else {"text": choice.get("text")}).items():
                if name in (*TEXTS, "text") and isinstance(text, str):
                    self._texts[name] = self._texts.get(name, "") + text
            log_probs = choice.get("logprobs")
            if isinstance(log_probs, dict) and isinstance(log_probs.get("content"), list):
                self._choice.setdefault("logprobs", {"content": []})["content"] += log_probs["content"]
            if isinstance(choice.get("output_ids"), list):  # LMDeploy's `return_token_ids`
                self._choice.setdefault("output_ids", []).extend(choice["output_ids"])
            self._choice["finish_reason"] = choice.get("finish_reason")

    def whole(self) -> bytes:
        """The completion."""
        choice = dict(self._choice)
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": "", **self._texts}
        else:
            choice["text"] = self._texts.get("text", "")
        name = self._head.get("object")
        head = {**self._head, "object": OBJECTS.get(str(name), name)}
        return orjson.dumps({**head, "choices": [choice]})
