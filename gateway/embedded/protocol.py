"""OpenAI's chat and text completions: a request's JSON checked into a `ChatRequest`, answers put into OpenAI's words.

Every field is honoured, refused with a 400 that names it, or in `IGNORED`, because it cannot change an answer.
Source: https://platform.openai.com/docs/api-reference/chat/create; `top_k`, `min_p` and `repetition_penalty` are named
as in vLLM and LMDeploy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gateway.errors import ApiError, bad_request

IGNORED = {"metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention"}
IGNORED |= {"prompt_cache_options"}
IGNORED |= {"safety_identifier", "service_tier", "store", "user"}
# Values that ask for nothing, for fields that are refused otherwise.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "reasoning_effort": ("none",),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
HANDLED = {"model", "max_tokens", "max_completion_tokens", "n", "stop", "logprobs", "stream", "stream_options"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED_IN_MESSAGE = {"name", "refusal", "annotations"}
MAX_MESSAGES = 4096
MAX_STOPS = 16
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
        return sampling_params({name: config[name] for name in names if config.get(name) is not None}, cls())


@dataclass(frozen=True)
class Form:
    """A kind of request: the fields that only it has."""

    fields: frozenset[str]


CHAT = Form(frozenset({"messages", "top_logprobs"}))
TEXT = Form(frozenset({"prompt"}))


@dataclass(frozen=True)
class ChatRequest:
    """A checked request.

    prompt: the text of a text completion, which has no messages; messages: {"role", "content": parts} for the chat
    template, a part being {"type": "text", "text": str} or {"type": "image", "image": data URI, "where": its place in
    the request}; max_tokens: None means up to the context length; top_logprobs: None means no log-probabilities.
    """

    messages: list[dict[str, Any]]
    params: SamplingParams
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    prompt: str | None = None


def parse(body: object, form: Form, *, model: str, defaults: SamplingParams, max_n: int) -> ChatRequest:
    """Checks a decoded JSON body. Raises ApiError (400, or 404 for another model's name)."""
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", None)
    body = {key: value for key, value in body.items() if value is not None}
    if not isinstance(body.get("model"), str):
        raise bad_request("'model' must be given as a string.", "model")
    if body["model"] != model:
        raise ApiError(
            404, f"The model does not exist; this engine serves {model!r}.", code="model_not_found", param="model"
        )
    known = HANDLED | form.fields | IGNORED | {setting.name for setting in fields(SamplingParams)}
    for name, value in body.items():
        if name not in known and value not in HARMLESS.get(name, ()):
            if name == "tools" and body.get("tool_choice") == "none":
                continue
            raise bad_request(f"{name[:64]!r} is not supported by this engine.", name[:64], "unsupported_parameter")
    stream = boolean(body, "stream")
    options = body.get("stream_options", {})
    if "stream_options" in body and not stream:
        raise bad_request("'stream_options' needs 'stream': true.", "stream_options")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise bad_request("'stream_options' may only hold 'include_usage'.", "stream_options")
    limits = [integer(body, name, 1) for name in ("max_tokens", "max_completion_tokens") if name in body]
    if len(set(limits)) > 1:
        raise bad_request("'max_tokens' and 'max_completion_tokens' differ; give one of them.", "max_tokens")
    return ChatRequest(
        messages=parse_messages(body.get("messages")) if form is CHAT else [],
        prompt=prompt_text(body.get("prompt")) if form is TEXT else None,
        params=sampling_params(body, defaults),
        max_tokens=limits[0] if limits else None,
        n=integer(body, "n", 1, max_n) if "n" in body else 1,
        stop=stop_strings(body.get("stop", [])),
        top_logprobs=chat_logprobs(body) if form is CHAT else text_logprobs(body),
        stream=stream,
        include_usage=boolean(options, "include_usage"),
    )


def chat_logprobs(body: dict[str, Any]) -> int | None:
    """How many alternatives to each token are wanted; None without log-probabilities."""
    wanted = boolean(body, "logprobs")
    if body.get("top_logprobs") and not wanted:
        raise bad_request("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    if not wanted:
        return None
    return integer(body, "top_logprobs", 0, 20) if "top_logprobs" in body else 0


def text_logprobs(body: dict[str, Any]) -> int | None:
    return integer(body, "logprobs", 0, 20) if "logprobs" in body else None


def prompt_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise bad_request("'prompt' must be a non-empty string; this engine takes no lists and no token ids.", "prompt")
    return value


def sampling_params(body: dict[str, Any], defaults: SamplingParams) -> SamplingParams:
    """`defaults` with what `body` says instead. Raises ApiError 400."""
    seed = integer(body, "seed", -(2**63), 2**63 - 1) if "seed" in body else None
    top_k = integer(body, "top_k", -1) if "top_k" in body else defaults.top_k
    return SamplingParams(
        temperature=number(body, "temperature", defaults.temperature, 0, 2),
        top_p=number(body, "top_p", defaults.top_p, 0, 1, above=True),
        top_k=max(top_k, 0),
        min_p=number(body, "min_p", defaults.min_p, 0, 1),
        presence_penalty=number(body, "presence_penalty", 0.0, -2, 2),
        frequency_penalty=number(body, "frequency_penalty", 0.0, -2, 2),
        repetition_penalty=number(body, "repetition_penalty", defaults.repetition_penalty, 0, 10, above=True),
        seed=seed,
    )


def number(body: dict[str, Any], name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
    """A number of low..high (without low itself if `above`)."""
    value = body.get(name, default)
    inside = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
    if not inside or (above and value == low):
        raise bad_request(
            f"{name!r} must be a number {'above' if above else 'from'} {low} {'and' if above else 'to'} "
            f"{'at most ' if above else ''}{high}.",
            name,
        )
    return float(value)


def integer(body: dict[str, Any], name: str, low: int, high: int = 2**63 - 1) -> int:
    value = body[name]
    if type(value) is not int or not low <= value <= high:
        raise bad_request(f"{name!r} must be an integer from {low} to {high}.", name)
    return value


def boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name) or False
    if value is not False and value is not True:
        raise bad_request(f"{name!r} must be true or false.", name)
    return value


def stop_strings(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise bad_request(f"'stop' must be a string or a list of at most {MAX_STOPS} strings.", "stop")
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise bad_request(f"A stop string must have 1 to {MAX_STOP_LENGTH} characters.", "stop")
    return tuple(stops)


def parse_messages(value: object) -> list[dict[str, Any]]:
    """The messages as the chat template takes them; images are not decoded yet. Raises ApiError 400."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise bad_request(f"'messages' must be a list of 1 to {MAX_MESSAGES} messages.", "messages")
    return [parse_message(message, f"messages[{i}]") for i, message in enumerate(value)]


def parse_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_request(f"{where} must be an object.", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{where}.role must be one of {', '.join(ROLES)}.", f"{where}.role")
    for key, value in message.items():
        if key not in {"role", "content"} | IGNORED_IN_MESSAGE and value not in (None, []):
            name = f"{where}.{key[:64]}"
            raise bad_request(f"{name} is not supported by this engine.", name, "unsupported_parameter")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise bad_request(f"{where}.content must be a string or a list of parts.", f"{where}.content")
    parts: list[dict[str, Any]] = []
    for i, part in enumerate(content):
        parsed = parse_part(part, f"{where}.content[{i}]", role)
        if parsed["type"] == "text" and parts and parts[-1]["type"] == "text":
            # One text, so that a special token cannot be put together from two.
            parsed = {"type": "text", "text": parts.pop()["text"] + parsed["text"]}
        parts.append(parsed)
    return {"role": ROLES[role], "content": parts}


def parse_part(part: object, where: str, role: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image_url"):
        message = f"{where} must be a part of type 'text' or 'image_url'; this engine takes no other kind."
        raise bad_request(message, where)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{where}.text must be a string.", f"{where}.text")
        return {"type": "text", "text": part["text"]}
    if role != "user":
        raise bad_request(f"{where} is an image; only user messages may hold images.", where)
    # `detail` is accepted and ignored: the model's own image processor decides the size.
    image_url = part.get("image_url")
    url = image_url.get("url") if isinstance(image_url, dict) else None
    if not isinstance(url, str):
        raise bad_request(f"{where}.image_url must be an object with a 'url' string.", f"{where}.image_url")
    if DATA_URI.match(url) is None:
        message = (
            f"{where} is not a data: URI of a PNG, JPEG, WebP or GIF image in base64; this engine fetches nothing."
        )
        raise bad_request(message, where, "invalid_image")
    return {"type": "image", "image": url, "where": where}


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
