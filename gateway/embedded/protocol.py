"""OpenAI's chat and text completions: a request's JSON checked into a `GenerationRequest`, answers in OpenAI's words.

What a field may be is the gateway's contract (`gateway.contract.requests`); here stands what this engine does of it.

Every field is honoured, refused with a 400 that names it, or in `IGNORED`, because it cannot change an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gateway.contract.fields import Function, Sampling
from gateway.contract.requests import (
    ChatRequest,
    CompletionRequest,
    ImageContent,
    Message,
    TextContent,
)
from gateway.contract.validation import validate
from gateway.embedded.tools import Tool, parse_tools, template_tool_calls
from gateway.errors import ApiError, bad_request

IGNORED = {"metadata", "prediction", "prompt_cache_key", "prompt_cache_retention"}
IGNORED |= {"prompt_cache_options"}
IGNORED |= {"safety_identifier", "service_tier", "store", "user"}
# Values that ask for nothing, for fields that are refused otherwise.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "logit_bias": ({},),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
IMAGE_ROLES = {"user", "tool"}
MAX_MESSAGES = 4096
MAX_STOP_LENGTH = 256
DATA_URI = re.compile(r"data:image/(?:png|jpe?g|webp|gif)((?:;[^;,\s]{1,64})*);base64,", re.IGNORECASE)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def from_generation_config(cls, config: dict[str, Any]) -> SamplingParams:
        """The model's own defaults, from generation_config.json as vLLM and LMDeploy take them. Raises ApiError."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return sampling_params(validate(Sampling, {name: config.get(name) for name in names}), cls())


Form = type[ChatRequest] | type[CompletionRequest]  # a kind of request
CHAT: Form = ChatRequest
TEXT: Form = CompletionRequest
REFUSED = {"logit_bias"}  # of the contract's fields


@dataclass(frozen=True)
class GenerationRequest:
    """A checked request.

    model: the name it asks for, the base's or an adapter's.
    prompt: the text of a text completion, which has no messages; messages: {"role", "content": parts} for the chat
    template, a part being {"type": "text", "text": str} or {"type": "image", "image": data URI, "where": its location
    in the request}; max_tokens: None means up to the context length; top_logprobs: None means no log-probabilities.

    schema: the JSON schema that the answer must keep to; tools: the functions that the model is shown; must_call: the
    answer must be calls of them; only_tool: the name of the one function that may be called, None for any.
    """

    model: str
    messages: list[dict[str, Any]]
    params: SamplingParams
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    prompt: str | None = None
    schema: dict[str, Any] | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    only_tool: str | None = None
    parallel_tool_calls: bool = True


def parse(
    body: object, form: Form, *, models: Sequence[str], defaults: SamplingParams, max_n: int
) -> GenerationRequest:
    """Checks a decoded JSON body; `models` are the names it may ask for, the first one where it is silent.

    Raises ApiError (400, or 404 for another model's name).
    """
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", None)
    body = {key: value for key, value in body.items() if value is not None}
    if isinstance(body.get("model"), str) and body["model"] not in models:
        served = ", ".join(map(repr, models))
        raise ApiError(
            404, f"The model does not exist; this engine serves {served}.", code="model_not_found", param="model"
        )
    model = body["model"] if isinstance(body.get("model"), str) else models[0]
    _refuse_unsupported(body, form)
    request = validate(form, body)
    limits = {limit for limit in (request.max_tokens, request.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise bad_request("'max_tokens' and 'max_completion_tokens' differ; give one of them.", "max_tokens")
    if (request.n or 1) > max_n:
        raise bad_request(f"'n' must be an integer from 1 to {max_n}.", "n")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(len(text) > MAX_STOP_LENGTH for text in stop):
        raise bad_request(f"A string of 'stop' may have at most {MAX_STOP_LENGTH} characters.", "stop")
    if isinstance(request, CompletionRequest) and len(request.texts) > 1:
        raise bad_request("'prompt' may be one text; the gateway sends a request for each of several.", "prompt")
    if isinstance(request, ChatRequest):
        top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
    else:
        top_logprobs = request.logprobs
    return GenerationRequest(
        model=model,
        messages=template_messages(request.messages) if isinstance(request, ChatRequest) else [],
        prompt=request.texts[0] if isinstance(request, CompletionRequest) else None,
        params=sampling_params(request, defaults),
        max_tokens=limits.pop() if limits else None,
        n=request.n or 1,
        stop=tuple(stop),
        top_logprobs=top_logprobs,
        stream=request.streams,
        include_usage=request.wants_usage,
        **(structure(request, body) if isinstance(request, ChatRequest) else {}),
    )


def structure(request: ChatRequest, body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `GenerationRequest` that give the answer a form. Raises ApiError 400."""
    wanted = body.get("response_format", {"type": "text"})
    schema = {"json_object": {"type": "object"}, "json_schema": wanted.get("json_schema", {}).get("schema")}
    form: dict[str, Any] = {"schema": schema.get(wanted["type"])}
    if not request.tools or request.tool_choice == "none":  # the model does not see tools that it must not call
        return form
    form["tools"] = parse_tools(body["tools"])
    form["must_call"] = request.tool_choice not in (None, "auto")
    form["parallel_tool_calls"] = request.parallel_tool_calls is not False
    if isinstance(request.tool_choice, Function):
        form["only_tool"] = request.tool_choice.function.name
        form["parallel_tool_calls"] = False
    return form


def _refuse_unsupported(body: dict[str, Any], form: Form) -> None:
    """Take out what cannot change an answer; raise ApiError 400 for what would change it and is not done here."""
    for name in list(body):
        if name in form.model_fields and name not in REFUSED:
            continue
        value = body.pop(name)
        if name not in IGNORED and value not in HARMLESS.get(name, ()):
            raise bad_request(f"{name[:64]!r} is not supported by this engine.", name[:64], "unsupported_parameter")


def sampling_params(given: Sampling, defaults: SamplingParams) -> SamplingParams:
    """`defaults` with what `given` says instead."""
    said = {known.name: getattr(given, known.name) for known in fields(SamplingParams)}
    if said["top_k"] == -1:
        said["top_k"] = 0
    return replace(defaults, **{name: value for name, value in said.items() if value is not None})


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as the chat template takes them; images are not decoded yet. Raises ApiError 400."""
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"'messages' may have at most {MAX_MESSAGES} messages.", "messages")
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _template_message(message: Message, location: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise bad_request(f"{location}.role must be one of {', '.join(ROLES)}.", f"{location}.role")
    parsed: dict[str, Any] = {"role": ROLES[message.role], "content": _content_parts(message, location)}
    calls = (message.model_extra or {}).get("tool_calls")
    if calls:
        parsed["tool_calls"] = template_tool_calls(calls, f"{location}.tool_calls")
        if not message.content:
            parsed[
                "content"
            ] = []  # as in training: templates write a line break between a text, be it empty, and a call
    return parsed


def _content_parts(message: Message, location: str) -> list[dict[str, Any]]:
    if isinstance(message.content, str) or not message.content:
        return [{"type": "text", "text": message.content or ""}]
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(message.content):
        if isinstance(part, ImageContent):
            parts.append(_image_part(part, f"{location}.content[{index}]", message.role))
            continue
        text = part.text if isinstance(part, TextContent) else part.refusal
        if parts and parts[-1]["type"] == "text":
            # One text, so that a special token cannot be put together from two.
            parts[-1]["text"] += text
        else:
            parts.append({"type": "text", "text": text})
    return parts


def _image_part(part: ImageContent, location: str, role: str) -> dict[str, Any]:
    """`detail` is ignored: the model's own image processor decides the size."""
    if role not in IMAGE_ROLES:
        raise bad_request(f"{location} is an image; only user and tool messages may hold images.", location)
    if DATA_URI.match(part.image_url.url) is None:
        message = (
            f"{location} is not a data: URI of a PNG, JPEG, WebP or GIF image in base64; this engine fetches nothing."
        )
        raise bad_request(message, location, "invalid_image")
    return {"type": "image", "image": part.image_url.url, "where": location}


@dataclass(frozen=True)
class TokenLogProb:
    """A generated token, its raw log-probability (before temperature and penalties) and the likeliest alternatives."""

    token: bytes
    log_prob: float
    top: list[tuple[bytes, float]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.token.decode("utf-8", "replace")

    def as_json(self) -> dict[str, Any]:
        top = [log_prob_json(token, log_prob) for token, log_prob in self.top]
        return {**log_prob_json(self.token, self.log_prob), "top_logprobs": top}


def log_prob_json(token: bytes, log_prob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": finite(log_prob), "bytes": list(token)}


def finite(log_prob: float) -> float:
    """-9999.0 is OpenAI's value for "very unlikely"; JSON has no infinity."""
    return max(log_prob, -9999.0)


def log_probs_json(log_probs: Sequence[TokenLogProb]) -> dict[str, Any]:
    return {"content": [entry.as_json() for entry in log_probs], "refusal": None}


def usage_json(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
