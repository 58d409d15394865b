"""POST /v1/completions: text completions, whose prompt is a text as it stands, without a chat template."""

from __future__ import annotations

from gateway.api.chat import ChatRequest, check_fields, refuse, settle_stop, stream_fields
from gateway.api.fields import FIELDS, Object, integer, missing
from gateway.api.unsupported import NOWHERE_IN_TEXT
from gateway.engines.spec import EngineSpec
from gateway.errors import bad_request

PATH = "v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's
SHARED = (
    *("temperature", "top_p", "min_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("n", "seed", "max_tokens", "max_completion_tokens", "stream", "stream_options", "stop", "logit_bias", "user"),
)
TEXT_FIELDS = {**{field: FIELDS[field] for field in SHARED}, "logprobs": integer(0, 20)}


def check_completion(body: Object, spec: EngineSpec) -> ChatRequest:
    """Check the fields of https://platform.openai.com/docs/api-reference/completions/create. Raises ApiError 400."""
    model = check_fields(body, TEXT_FIELDS)
    body["prompt"] = check_prompt(body.get("prompt"))
    for table in (NOWHERE_IN_TEXT, spec.refused, spec.refused_in_text):
        refuse(body, table)
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = DEFAULT_MAX_TOKENS
    answers = body.get("n") or 1
    stream, include_usage = stream_fields(body)
    return ChatRequest(body, model, stream, include_usage, answers, [], settle_stop(body, answers, spec), path=PATH)


def check_prompt(prompt: object) -> str:
    """The text. Engines differ in what they make of lists, and a list is as many requests as it has members."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise bad_request(
            "'prompt' must be one string: send a request for each text, and text instead of token ids.", "prompt"
        )
    if not isinstance(prompt, str) or not prompt:
        raise missing("prompt", "a non-empty string")
    return prompt
