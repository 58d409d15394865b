"""POST /tokenize: how many tokens a prompt has, images among them, in the shape of vLLM's route of that name.

The gateway has no tokenizer. It asks the engine, and one without a route for it for a single token, whose usage tells.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.api import completions
from gateway.api.chat import CHAT_PATH, ChatRequest, Reader, check_fields, check_messages, refuse
from gateway.api.fields import Object
from gateway.api.unsupported import NOWHERE
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError, bad_request
from gateway.media.checks import ImagePart
from gateway.streaming.completion import read_completion, read_json
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.stops import Stops


def check_tokenize(body: Object, spec: EngineSpec) -> ChatRequest:
    """`messages`, as in a chat completion, or `prompt`, as in a text completion. Raises ApiError 400."""
    model = check_fields(body, {})
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise bad_request("Give either 'prompt' or 'messages'.", "prompt", "missing_required_parameter")
    refuse(body, NOWHERE)
    if messages is not None:
        images = check_messages(messages, spec)
        asked: Object = {"model": model, "messages": messages}
        if spec.tokenize_path:
            return _request(asked, images, spec.tokenize_path, read_tokens)
        return _request({**asked, "max_tokens": 1}, images, CHAT_PATH, read_usage)
    asked = {"model": model, "prompt": completions.check_prompt(prompt)}
    if spec.tokenize_path:
        return _request(asked, [], spec.tokenize_path, read_tokens)
    if spec.encode_path:
        return _request({"model": model, "input": asked["prompt"]}, [], spec.encode_path, read_encoded)
    return _request({**asked, "max_tokens": 1}, [], completions.PATH, read_usage)


def _request(body: Object, images: list[ImagePart], path: str, read: Reader) -> ChatRequest:
    return ChatRequest(
        body,
        body["model"],
        stream=False,
        include_usage=False,
        answers=1,
        images=images,
        stops=None,
        path=path,
        read=read,
    )


def read_tokens(answer: bytes, stops: Stops | None, log_probs: RawLogProbs | None) -> tuple[bytes, Object]:
    """vLLM's shape, which is our own engine's too."""
    payload = read_json(answer)
    if not isinstance(payload, dict) or not isinstance(payload.get("count"), int):
        raise _odd()
    return _answer(payload["count"], payload.get("tokens"), payload.get("max_model_len"))


def read_encoded(answer: bytes, stops: Stops | None, log_probs: RawLogProbs | None) -> tuple[bytes, Object]:
    """LMDeploy's /v1/encode."""
    payload = read_json(answer)
    if not isinstance(payload, dict) or not isinstance(payload.get("input_ids"), list):
        raise _odd()
    return _answer(len(payload["input_ids"]), payload["input_ids"])


def read_usage(answer: bytes, stops: Stops | None, log_probs: RawLogProbs | None) -> tuple[bytes, Object]:
    """The prompt's length in a completion's usage."""
    _, usage = read_completion(answer)
    if not isinstance(usage.get("prompt_tokens"), int):
        raise _odd()
    return _answer(usage["prompt_tokens"])[0], usage


def _answer(count: int, tokens: Any = None, context: Any = None) -> tuple[bytes, Object]:
    return orjson.dumps({"count": count, "max_model_len": context, "tokens": tokens}), {}


def _odd() -> ApiError:
    return ApiError(502, "The engine does not say how many tokens there are.", code="engine_error")
