"""Chat completion requests: parsed once, checked field by field, with an error that names the field.

The checks are ours and not a pydantic model's, because a model would copy every image string, and its errors quote the
input. Fields we don't know are passed on: engines have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.engines import HARMLESS, NOWHERE, EngineSpec
from gateway.errors import ApiError, bad_request
from gateway.images import ImagePart
from gateway.relay import read_completion
from gateway.stops import Stops
from gateway.token_text import RawLogProbs

Object = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_N = 128
MAX_STOP = 16
MAX_TOOLS = 128


CHAT_PATH = "v1/chat/completions"
# A whole answer -> what the client gets, and the usage; as `read_completion`. Raises ApiError 502.
Reader = Callable[[bytes, Stops | None, RawLogProbs | None], tuple[bytes, Object]]


@dataclass
class ChatRequest:
    """A checked request. `body` is what the engine gets; `images` stand in the prompt's order."""

    body: Object
    model: str
    stream: bool
    include_usage: bool
    answers: int  # n
    images: list[ImagePart]
    stops: Stops | None  # what the gateway cuts, because the engine doesn't
    top_log_probs: int | None = None  # alternatives to each token; None without log-probabilities
    path: str = CHAT_PATH  # at the engine
    read: Reader = read_completion  # what makes the client's answer of the engine's


def parse_json(raw: bytes) -> Object:
    """The request body as an object. Raises ApiError 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        # Its message gives the position, never the text.
        raise ApiError(400, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return body


def check_chat(body: Object, spec: EngineSpec) -> ChatRequest:
    """Check the fields of OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat/create).

    Raises ApiError 400 whose `param` is the field. A field set to null counts as absent, as OpenAI's clients mean it.
    """
    model = check_fields(body, FIELDS)
    _check_together(body)
    for table in (NOWHERE, spec.refused):
        refuse(body, table)
    images = check_messages(body.get("messages"), spec)
    stream, include_usage = stream_fields(body)
    answers = body.get("n") or 1
    stops = settle_stop(body, answers, spec)
    top = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    return ChatRequest(body, model, stream, include_usage, answers, images, stops, top)


def check_fields(body: Object, fields: Mapping[str, Check]) -> str:
    """Check those that are there, and return the model's name."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise missing("model", "a string")
    for field, check in fields.items():
        value = body.get(field)
        if value is not None:
            check(field, value)
    if body.get("stream_options") is not None and body.get("stream") is not True:
        raise bad_request("'stream_options' is only allowed when 'stream' is true.", "stream_options")
    return model


def refuse(body: Object, table: Mapping[str, str]) -> None:
    """Refuse the table's fields; those whose value asks for nothing are taken out, for engines that don't know them."""
    for field in table.keys() & body.keys():
        value = body.pop(field)
        if value is not None and value not in HARMLESS.get(field, ()):
            raise bad_request(f"'{field}' cannot be honoured: {table[field]}.", field, "unsupported_parameter")


def stream_fields(body: Object) -> tuple[bool, bool]:
    """Whether the answer is a stream, and whether the client wants its usage."""
    return body.get("stream") is True, (body.get("stream_options") or {}).get("include_usage") is True


def settle_stop(body: Object, answers: int, spec: EngineSpec) -> Stops | None:
    """The stop strings that the gateway must cut, because the engine drops them."""
    stop = body.get("stop")
    if not stop or not spec.drops_stop:
        return None
    if body.get("logprobs"):
        raise bad_request(
            "'stop' and 'logprobs' cannot be honoured together: for this engine the gateway cuts the text, but not the "
            "list of tokens.",
            "stop",
            "unsupported_parameter",
        )
    return Stops([stop] if isinstance(stop, str) else stop, answers)


def missing(param: str, what: str) -> ApiError:
    return bad_request(f"'{param}' is required and must be {what}.", param, "missing_required_parameter")


Check = Callable[[str, Any], None]


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A number from `low` (or just above it) to `high`."""

    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad_request(f"'{field}' must be a number.", field, "invalid_type")
        if not low <= value <= high or (above and value == low):
            start = "above" if above else "at least"
            raise bad_request(f"'{field}' must be {start} {low:g} and at most {high:g}.", field)

    return check


def integer(low: int, high: int) -> Check:
    def check(field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_request(f"'{field}' must be an integer.", field, "invalid_type")
        if not low <= value <= high:
            raise bad_request(f"'{field}' must be at least {low} and at most {high}.", field)

    return check


def kind(wanted: type, words: str) -> Check:
    def check(field: str, value: Any) -> None:
        if not isinstance(value, wanted):
            raise bad_request(f"'{field}' must be {words}.", field, "invalid_type")

    return check


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
        number(-100, 100)(f"logit_bias.{token[:20]}", bias)


TOKENS = 2**31 - 1

FIELDS: dict[str, Check] = {
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
    "stream_options": _stream_options,
    "stop": _stop,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": kind(bool, "true or false"),
    "response_format": _response_format,
    "logit_bias": _logit_bias,
    "user": kind(str, "a string"),
    "metadata": kind(dict, "an object"),
}


def _check_together(body: Object) -> None:
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        raise bad_request("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    if body.get("tool_choice") not in (None, "none", "auto") and not body.get("tools"):
        raise bad_request("'tool_choice' needs 'tools'.", "tool_choice")


def check_messages(messages: Any, spec: EngineSpec) -> list[ImagePart]:
    """Check the messages, settle roles the engine doesn't know, and return the images."""
    if not isinstance(messages, list) or not messages:
        raise missing("messages", "a list of at least one message")
    images: list[ImagePart] = []
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        if not isinstance(message, dict):
            raise bad_request(f"'{where}' must be an object.", where, "invalid_type")
        role = message.get("role")
        if role not in ROLES:
            raise bad_request(f"'{where}.role' must be one of {', '.join(ROLES)}.", f"{where}.role")
        if role == "developer" and not spec.developer_role:
            message["role"] = "system"
        content = message.get("content")
        if isinstance(content, list) and content:
            for number_, part in enumerate(content):
                _check_part(f"{where}.content[{number_}]", part, images)
        elif not isinstance(content, str) and not (content is None and role == "assistant"):
            raise bad_request(
                f"'{where}.content' must be a string or a list of parts.", f"{where}.content", "invalid_type"
            )
    return images


def _check_part(where: str, part: Any, images: list[ImagePart]) -> None:
    form = part.get("type") if isinstance(part, dict) else None
    if form == "text":
        if not isinstance(part.get("text"), str):
            raise bad_request(f"'{where}.text' must be a string.", f"{where}.text", "invalid_type")
    elif form == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or not isinstance(image.get("url"), str):
            raise bad_request(
                f"'{where}.image_url' must be an object with a string 'url'.", f"{where}.image_url", "invalid_type"
            )
        if image.get("detail") not in (None, "auto", "low", "high"):
            raise bad_request(f"'{where}.image_url.detail' must be auto, low or high.", f"{where}.image_url.detail")
        images.append(ImagePart(where, image))
    elif form == "refusal" and isinstance(part.get("refusal"), str):
        pass
    else:
        raise bad_request(f"'{where}.type' must be text or image_url; nothing else is served.", f"{where}.type")
