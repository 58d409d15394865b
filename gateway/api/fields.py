"""The fields of chat completion requests: what each may be, said once for the checks and the API's description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import ApiError, bad_request

Object = dict[str, Any]

MAX_N = 128
MAX_STOP = 16
MAX_TOOLS = 128


def missing(param: str, what: str) -> ApiError:
    return bad_request(f"'{param}' is required and must be {what}.", param, "missing_required_parameter")


@dataclass(frozen=True)
class Field:
    """A request field: the JSON schema that describes it, and what raises ApiError 400 for a value that is wrong.

    Checks are ours and not a validator's of that schema, because their errors never quote the input.
    """

    schema: Object
    check: Callable[[str, Any], None]


def number(low: float, high: float, *, above: bool = False) -> Field:
    """A number from `low` (or just above it) to `high`."""

    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad_request(f"'{field}' must be a number.", field, "invalid_type")
        if not low <= value <= high or (above and value == low):
            start = "above" if above else "at least"
            raise bad_request(f"'{field}' must be {start} {low:g} and at most {high:g}.", field)

    return Field({"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high}, check)


def integer(low: int, high: int) -> Field:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_request(f"'{field}' must be an integer.", field, "invalid_type")
        if not low <= value <= high:
            raise bad_request(f"'{field}' must be at least {low} and at most {high}.", field)

    return Field({"type": "integer", "minimum": low, "maximum": high}, check)


TYPES = {bool: "boolean", str: "string", dict: "object"}


def kind(wanted: type, words: str) -> Field:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, wanted):
            raise bad_request(f"'{field}' must be {words}.", field, "invalid_type")

    return Field({"type": TYPES[wanted]}, check)


def _stop(field: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request("'stop' must be a non-empty string or a list of them.", field, "invalid_type")
    if len(stops) > MAX_STOP:
        raise bad_request(f"'stop' may have at most {MAX_STOP} strings.", field)


def _stream_options(field: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise bad_request("'stream_options' must be an object.", field, "invalid_type")
    if not isinstance(value.get("include_usage", False), bool | None):
        raise bad_request("'stream_options.include_usage' must be true or false.", "stream_options.include_usage")


def _tools(field: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise bad_request(f"'tools' must be a list of at most {MAX_TOOLS} tools.", field, "invalid_type")
    for at, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(
                f'\'tools[{at}]\' must be {{"type": "function", "function": {{"name": …}}}}.', f"tools[{at}]"
            )


def _tool_choice(field: str, value: Any) -> None:
    if value in ("none", "auto", "required"):
        return
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request("'tool_choice' must be none, auto, required or a function of 'tools'.", field)


def _response_format(field: str, value: Any) -> None:
    form = value.get("type") if isinstance(value, dict) else None
    if form == "json_schema":
        described = value.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
            raise bad_request(
                "'response_format.json_schema.schema' is required and must be a JSON schema.",
                "response_format.json_schema.schema",
                "missing_required_parameter",
            )
    elif form not in ("text", "json_object"):
        raise bad_request("'response_format.type' must be text, json_object or json_schema.", "response_format.type")


def _logit_bias(field: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise bad_request("'logit_bias' must map token ids to numbers.", field, "invalid_type")
    for token, bias in value.items():
        if not token.isascii() or not token.isdigit():
            raise bad_request("'logit_bias' must map token ids to numbers.", field)
        BIAS.check(f"logit_bias.{token[:20]}", bias)


TOKENS = 2**31 - 1
BIAS = number(-100, 100)
NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
FUNCTION = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": NAMED},
}
TEXTS = {"type": "string", "minLength": 1}

RESPONSE_FORMAT = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {"schema": {"type": "object"}},
                },
            },
        },
    ]
}

FIELDS: dict[str, Field] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "min_p": number(0, 1),
    "top_k": integer(-1, TOKENS),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": number(0, 100, above=True),
    "n": integer(1, MAX_N),
    "seed": integer(-(2**63), 2**63 - 1),
    "max_tokens": integer(1, TOKENS),
    "max_completion_tokens": integer(1, TOKENS),
    "logprobs": kind(bool, "true or false"),
    "top_logprobs": integer(0, 20),
    "stream": kind(bool, "true or false"),
    "stream_options": Field(
        {"type": "object", "properties": {"include_usage": {"type": ["boolean", "null"]}}}, _stream_options
    ),
    "stop": Field({"anyOf": [TEXTS, {"type": "array", "items": TEXTS, "maxItems": MAX_STOP}]}, _stop),
    "tools": Field({"type": "array", "items": FUNCTION, "maxItems": MAX_TOOLS}, _tools),
    "tool_choice": Field({"anyOf": [{"enum": ["none", "auto", "required"]}, FUNCTION]}, _tool_choice),
    "parallel_tool_calls": kind(bool, "true or false"),
    "response_format": Field(RESPONSE_FORMAT, _response_format),
    "logit_bias": Field(
        {"type": "object", "patternProperties": {"^[0-9]+$": BIAS.schema}, "additionalProperties": False}, _logit_bias
    ),
    "user": kind(str, "a string"),
    "metadata": kind(dict, "an object"),
}
