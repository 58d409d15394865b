"""Chat completion requests: parsed once, checked field by field, with an error that names the field.

The checks are ours and not a pydantic model's, because a model would copy every image string, and its errors quote the
input. Fields we don't know are passed on: engines have their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.api.fields import FIELDS, Field, Object, missing
from gateway.api.unsupported import HARMLESS, NOWHERE
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, bad_request
from gateway.media.checks import ImagePart
from gateway.streaming.completion import read_completion
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.stops import Stops

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


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


def check_fields(body: Object, fields: Mapping[str, Field]) -> str:
    """Check those that are there, and return the model's name."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise missing("model", "a string")
    for name, field in fields.items():
        value = body.get(name)
        if value is not None:
            field.check(name, value)
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
