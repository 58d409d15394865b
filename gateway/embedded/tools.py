"""Tools: checked where a request declares them, and read from an answer's `<tool_call>` blocks.

The blocks are Hermes' and the Qwen family's: `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import bad_request

OPEN, CLOSE = "<tool_call>", "</tool_call>"
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# What a function without `parameters` takes: https://platform.openai.com/docs/api-reference/chat/create.
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: the JSON schema of its arguments; strict: they must keep to it.

    template: the tool as the chat template takes it.
    """

    name: str
    parameters: dict[str, Any]
    strict: bool
    template: dict[str, Any]


def parse_tools(tools: list[dict[str, Any]]) -> tuple[Tool, ...]:
    """The tools of a request whose form the contract has checked. Raises ApiError 400."""
    return tuple(_parse_tool(tool["function"], f"tools[{index}].function") for index, tool in enumerate(tools))


def _parse_tool(function: dict[str, Any], location: str) -> Tool:
    name, parameters = function["name"], function.get("parameters")
    if NAME.fullmatch(name) is None:
        param = f"{location}.name"
        raise bad_request(f"'{param}' must have 1 to 128 letters, digits or any of _ . : / -", param)
    if parameters is None:
        parameters = NO_PARAMETERS
    if not isinstance(parameters, dict):
        raise bad_request(f"'{location}.parameters' must be a JSON schema.", f"{location}.parameters")
    described = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    template = {"type": "function", "function": described}
    return Tool(name, parameters, function.get("strict") is True, template)


def template_tool_calls(calls: object, location: str) -> list[dict[str, Any]]:
    """An assistant message's `tool_calls` as the chat template takes them, arguments parsed. Raises ApiError 400."""
    problem = bad_request(
        f"'{location}' must be a list of "
        '{"type": "function", "id": …, "function": {"name": …, "arguments": a JSON object in a string}}.',
        location,
    )
    if not isinstance(calls, list):
        raise problem
    parsed = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise problem
        arguments = function.get("arguments") or "{}"
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                raise problem from None
        if not isinstance(arguments, dict):
            raise problem
        parsed.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return parsed


@dataclass(frozen=True)
class ToolCall:
    """A call in an answer. arguments: a JSON object as text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolCallParser:
    """Separates an answer's text from its tool calls while it grows."""

    def __init__(self) -> None:
        self._pending = ""
        self._called = False

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Adds text; returns the text outside of calls and the calls that are complete now."""
        self._pending += text
        shown = ""
        calls: list[ToolCall] = []
        while True:
            begin = self._pending.find(OPEN)
            if begin < 0:
                keep = next(size for size in range(len(OPEN) - 1, -1, -1) if self._pending.endswith(OPEN[:size]))
                shown += self._outside(self._pending[: len(self._pending) - keep])
                self._pending = self._pending[len(self._pending) - keep :]
                return shown, calls
            shown += self._outside(self._pending[:begin])
            self._pending = self._pending[begin:]
            call, rest = _first_call(self._pending)
            if call is None:
                return shown, calls
            calls.append(call)
            self._pending, self._called = rest, True

    def finish(self) -> str:
        """What is left at the answer's end: a call that was cut short is text, because it can't be carried out."""
        rest, self._pending = self._outside(self._pending), ""
        return rest

    def _outside(self, text: str) -> str:
        """Text outside of calls; white space between two calls belongs to neither."""
        return "" if self._called and not text.strip() else text


def _first_call(block: str) -> tuple[ToolCall | None, str]:
    """The call that `block` begins with and the text after it; None while it is incomplete."""
    end = block.find(CLOSE)
    while end >= 0:  # an argument may contain the tag too: the block ends where it is whole JSON
        try:
            call = json.loads(block[len(OPEN) : end])
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            return ToolCall(str(call["name"]), arguments), block[end + len(CLOSE) :]
        except (ValueError, TypeError, KeyError, RecursionError):
            end = block.find(CLOSE, end + 1)
    return None, block
