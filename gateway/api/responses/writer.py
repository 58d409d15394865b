"""Answers as Responses: one object, or the events that build it up.

The events and their order: https://platform.openai.com/docs/api-reference/responses-streaming. Every one is numbered,
and what they tell piece by piece stands whole in the last.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import orjson

from gateway.api.translation import Object, thought
from gateway.errors import ApiError
from gateway.streaming.sse import COMMENT, CONTENT_TYPE


class ResponseWriter:
    """One response: its items in the order in which they began."""

    content_type = CONTENT_TYPE
    comment = COMMENT

    def __init__(self, request: Object) -> None:
        self._request = {field: request.get(field) for field in ECHOED}
        self._id = _new_id("resp")
        self._created = int(time.time())
        self._usage: Object | None = None
        self._reason = ""
        self._number = 0
        self._output: list[Object] = []
        self._calls: dict[int, int] = {}  # index of a tool call in the chat's delta -> of its item in the output

    def answer(self, completion: Object) -> bytes:
        choice = completion["choices"][0] if completion["choices"] else {}
        message = choice.get("message") or {}
        self._take(completion, choice)
        text, calls = message.get("content"), message.get("tool_calls") or []
        if thinking := thought(message):
            self._output.append({**_reasoning_item("completed"), "content": [_reasoning_text(thinking)]})
        if text or not calls:
            item = _message_item("completed")
            item["content"] = [{**_text_part(), "text": text or "", "logprobs": _log_probs(choice)}]
            self._output.append(item)
        for call in calls:
            item = _call_item(call, "completed")
            item["arguments"] = call["function"].get("arguments") or ""
            self._output.append(item)
        self._output[-1]["status"] = self._last_status()
        return orjson.dumps(self._response(self._last_status()))

    def chunk(self, chunk: Object) -> bytes:
        choices = chunk.get("choices") or []
        choice = choices[0] if choices else {}
        self._take(chunk, choice)
        delta = choice.get("delta") or {}
        events = b"" if self._number else self._begin()
        if thinking := thought(delta):
            events += self._think(thinking)
        if delta.get("content"):
            events += self._text(delta["content"], _log_probs(choice))
        for call in delta.get("tool_calls") or []:
            events += self._call(call)
        return events

    def end(self) -> bytes:
        events = b"" if self._number else self._begin()
        if not self._output:
            events += self._text("", [])
        events += self._close()
        status = self._last_status()
        return events + self._event(f"response.{status}", response=self._response(status))

    def error(self, error: ApiError) -> bytes:
        """OpenAI's clients raise at the last event; those that read only responses see it in the one before."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = {**self._response("failed"), "error": {"code": code, "message": error.message}}
        events = b"" if self._number else self._begin()
        events += self._event("response.failed", response=failed)
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return events + self._event("error", **fields, **error.envelope())

    def _begin(self) -> bytes:
        events = self._event("response.created", response=self._response("in_progress"))
        return events + self._event("response.in_progress", response=self._response("in_progress"))

    def _think(self, text: str) -> bytes:
        events = b""
        item = self._open()
        if item is None or item["type"] != "reasoning":
            events = self._close()
            item = _reasoning_item("in_progress")
            self._output.append(item)
            events += self._event("response.output_item.added", output_index=self._at(), item=item)
            item["content"] = [_reasoning_text("")]
            events += self._part("response.content_part.added", part=_reasoning_text(""))
        item["content"][0]["text"] += text
        return events + self._part("response.reasoning_text.delta", delta=text)

    def _text(self, text: str, log_probs: list[Object]) -> bytes:
        events = b""
        item = self._open()
        if item is None or item["type"] != "message":
            events = self._close()
            item = _message_item("in_progress")
            self._output.append(item)
            events += self._event("response.output_item.added", output_index=self._at(), item=item)
            item["content"] = [_text_part()]
            events += self._part("response.content_part.added", part=_text_part())
        part = item["content"][0]
        part["text"] += text
        part["logprobs"] += log_probs
        if not text:
            return events
        return events + self._part("response.output_text.delta", delta=text, logprobs=log_probs)

    def _call(self, call: Object) -> bytes:
        """A piece of a tool call: the first has its name, all may have some of its arguments."""
        events = b""
        index, function = call.get("index", 0), call.get("function") or {}
        if index not in self._calls:
            events = self._close()
            self._calls[index] = len(self._output)
            self._output.append(_call_item(call, "in_progress"))
            events += self._event("response.output_item.added", output_index=self._at(), item=self._output[-1])
        at = self._calls[index]
        arguments = function.get("arguments")
        if arguments:
            self._output[at]["arguments"] += arguments
            name = "response.function_call_arguments.delta"
            events += self._event(name, item_id=self._output[at]["id"], output_index=at, delta=arguments)
        return events

    def _close(self) -> bytes:
        """The events that end the item that is open, if there is one."""
        item = self._open()
        if item is None:
            return b""
        item["status"] = self._last_status()
        if item["type"] == "reasoning":
            item["status"] = "completed"
            part = item["content"][0]
            events = self._part("response.reasoning_text.done", text=part["text"])
            events += self._part("response.content_part.done", part=part)
        elif item["type"] == "message":
            part = item["content"][0]
            events = self._part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            events += self._part("response.content_part.done", part=part)
        else:
            events = self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=self._at(),
                name=item["name"],
                arguments=item["arguments"],
            )
        return events + self._event("response.output_item.done", output_index=self._at(), item=item)

    def _open(self) -> Object | None:
        """Only the last item can be open."""
        return self._output[-1] if self._output and self._output[-1]["status"] == "in_progress" else None

    def _at(self) -> int:
        return len(self._output) - 1

    def _part(self, name: str, /, **fields: Any) -> bytes:
        item_id = self._output[-1]["id"]
        return self._event(name, item_id=item_id, output_index=self._at(), content_index=0, **fields)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        data = orjson.dumps({"type": name, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (name.encode(), data)

    def _take(self, payload: Object, choice: Object) -> None:
        usage = payload.get("usage")
        if usage:
            self._usage = _usage(usage)
        self._reason = choice.get("finish_reason") or self._reason

    def _last_status(self) -> str:
        return "incomplete" if self._reason in INCOMPLETE else "completed"

    def _response(self, status: str) -> Object:
        asked = self._request
        ended = status == "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if ended else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": INCOMPLETE[self._reason]} if status == "incomplete" else None,
            "output": self._output,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": self._usage,
            **asked,
            "metadata": asked["metadata"] or {},
            "parallel_tool_calls": asked["parallel_tool_calls"] is not False,
            "reasoning": {"effort": None, "summary": None},
            "text": {"format": {"type": "text"}, **(asked["text"] or {})},
            "tool_choice": asked["tool_choice"] or "auto",
            "tools": asked["tools"] or [],
        }


# Fields of the request that stand in the response.
ECHOED = (
    *("instructions", "max_output_tokens", "metadata", "model", "parallel_tool_calls", "temperature", "text"),
    *("tool_choice", "tools", "top_logprobs", "top_p", "user"),
)
# Reasons why an answer ended before it was complete: chat completions' and Responses'.
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _message_item(status: str) -> Object:
    return {"id": _new_id("msg"), "type": "message", "status": status, "role": "assistant", "content": []}


def _reasoning_item(status: str) -> Object:
    return {"id": _new_id("rs"), "type": "reasoning", "status": status, "summary": [], "content": []}


def _reasoning_text(text: str) -> Object:
    return {"type": "reasoning_text", "text": text}


def _text_part() -> Object:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _call_item(call: Object, status: str) -> Object:
    function = call.get("function") or {}
    return {
        "id": _new_id("fc"),
        "type": "function_call",
        "status": status,
        "call_id": call.get("id") or _new_id("call"),
        "name": function.get("name") or "",
        "arguments": "",
    }


def _log_probs(choice: Object) -> list[Object]:
    entries: list[Object] = (choice.get("logprobs") or {}).get("content") or []
    return entries


def _usage(usage: Object) -> Object:
    read, written = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.get("total_tokens", read + written),
    }
