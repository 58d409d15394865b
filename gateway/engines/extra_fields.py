"""Request fields beyond OpenAI's: which of them each engine honours, and within which bounds.

Engines take many more fields than OpenAI's API has, and some of them steer the server instead of the answer: templates
in the request, processor and media settings, cache and migration controls, raw token ids, session ids. So each engine
has a list of those that clients may send; every other field is refused by name.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import bad_request

Object = dict[str, Any]
MAX_LIST = 128
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class ExtraField:
    """What a field may be. `low` and `high` bound a number; `keys` are those that an object may have.

    `rename`: the engine's own name for it. `pixels`: at most the model's own limit (`EngineSpec.max_pixels`).
    """

    kind: type = bool
    low: int = 0
    high: int = MAX_TOKENS
    items: ExtraField | None = None
    keys: Mapping[str, ExtraField] = field(default_factory=dict)
    rename: str = ""
    pixels: bool = False

    def check(self, name: str, value: Any, max_pixels: int) -> None:
        """Raises ApiError 400 that names the field."""
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise bad_request(f"'{name}' must be {WORDS[self.kind]}.", name, "invalid_type")
        if isinstance(value, int) and not isinstance(value, bool):
            if self.pixels and not max_pixels:
                raise bad_request(f"'{name}' cannot be honoured: the model's own limit is not known here.", name)
            high = min(self.high, max_pixels) if self.pixels else self.high
            if not self.low <= value <= high:
                raise bad_request(f"'{name}' must be at least {self.low} and at most {high}.", name)
        if isinstance(value, list):
            if len(value) > MAX_LIST:
                raise bad_request(f"'{name}' may have at most {MAX_LIST} entries.", name)
            for index, entry in enumerate(value):
                if self.items is not None:
                    self.items.check(f"{name}[{index}]", entry, max_pixels)
        if isinstance(value, dict):
            for key, entry in value.items():
                if key not in self.keys:
                    allowed = f"only {', '.join(self.keys)} may be set"
                    raise bad_request(f"'{name}.{key[:50]}' cannot be honoured: {allowed}.", f"{name}.{key[:50]}")
                self.keys[key].check(f"{name}.{key}", entry, max_pixels)


WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    str: "a string",
    list: "a list",
    dict: "an object",
}
COUNT = ExtraField(int)
TEMPLATE_SWITCHES = ExtraField(dict, keys={"enable_thinking": ExtraField(), "thinking": ExtraField()})
# What a request may ask of the image processor: only fewer pixels than the model takes anyway.
PROCESSOR = ExtraField(dict, keys={"max_pixels": ExtraField(int, low=1, pixels=True)})

# OpenAI's fields that ask nothing of the answer; clients send them to every server.
IGNORED = frozenset(("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user", "metadata"))

# lmdeploy 0.18, serve/openai/protocol.py, ChatCompletionRequest. Not in it: session_id, input_ids, image_data,
# media_io_kwargs, return_routed_experts.
LMDEPLOY_FIELDS: Mapping[str, ExtraField] = {
    "repetition_ngram_size": ExtraField(int, high=1024),
    "repetition_ngram_threshold": ExtraField(int, high=1024),
    "ignore_eos": ExtraField(),
    "skip_special_tokens": ExtraField(),
    "spaces_between_special_tokens": ExtraField(),
    "include_stop_str_in_output": ExtraField(),
    "min_new_tokens": COUNT,
    "min_tokens": ExtraField(int, rename="min_new_tokens"),
    "enable_thinking": ExtraField(),
    "return_token_ids": ExtraField(),
    "chat_template_kwargs": TEMPLATE_SWITCHES,
    "mm_processor_kwargs": PROCESSOR,
}
# vLLM, docs/serving/openai_compatible_server.md, extra parameters of the chat API. Not in it: chat_template,
# documents, priority, request_id, cache_salt, kv_transfer_params, vllm_xargs, logits_processors; length_penalty, which
# only beam search reads.
VLLM_FIELDS: Mapping[str, ExtraField] = {
    "stop_token_ids": ExtraField(list, items=COUNT),
    "include_stop_str_in_output": ExtraField(),
    "ignore_eos": ExtraField(),
    "min_tokens": COUNT,
    "skip_special_tokens": ExtraField(),
    "spaces_between_special_tokens": ExtraField(),
    "allowed_token_ids": ExtraField(list, items=COUNT),
    "bad_words": ExtraField(list, items=ExtraField(str)),
    "add_generation_prompt": ExtraField(),
    "continue_final_message": ExtraField(),
    "return_tokens_as_token_ids": ExtraField(),
    "chat_template_kwargs": TEMPLATE_SWITCHES,
    "mm_processor_kwargs": PROCESSOR,
    "reasoning_effort": ExtraField(str),  # refused before where it is known that the model's template ignores it
}
# Of an engine that is not known, so that it must refuse other fields itself: what steers any of the known ones.
STEERING: Mapping[str, str] = dict.fromkeys(
    (
        *("chat_template", "media_io_kwargs", "session_id", "input_ids", "image_data", "cache_salt", "priority"),
        *("kv_transfer_params", "vllm_xargs", "logits_processors", "lora_path", "bootstrap_host", "bootstrap_room"),
    ),
    "it steers the server, not the answer",
)


def apply_extra_fields(
    body: Object, known: Container[str], allowed: Mapping[str, ExtraField] | None, engine: str, max_pixels: int
) -> None:
    """Check the fields of `body` that are not among the `known` ones, in place. Raises ApiError 400.

    allowed: the engine's table; None if the engine is not known: then fields are passed on. max_pixels: of an image.
    """
    for name in [name for name in body if name not in known]:
        value = body[name]
        if value is None or name in IGNORED:
            del body[name]
            continue
        if allowed is None:
            continue
        rule = allowed.get(name)
        if rule is None:
            message = f"'{name[:100]}' cannot be honoured: the {engine} engine does not take it from clients."
            raise bad_request(message, name[:100], "unsupported_parameter")
        rule.check(name, value, max_pixels)
        if rule.rename:
            body[rule.rename] = body.pop(name)
