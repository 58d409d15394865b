"""POST /tokenize: how many tokens a prompt has, images among them, in the shape of vLLM's route of that name.

The gateway has no tokenizer. It asks the engine, and one without a route for it for a single token, whose usage tells.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.api import completions
from gateway.api.chat import EngineRequest, engine_messages, is_answer_begun, refuse
from gateway.api.unsupported import NOWHERE
from gateway.contract.fields import Object
from gateway.contract.requests import TokenizeRequest
from gateway.contract.validation import validate
from gateway.engines.spec import EngineSpec
from gateway.errors import ApiError
from gateway.streaming.completion import read_completion, read_json


def check_tokenize(body: Object, spec: EngineSpec) -> EngineRequest:
    """`messages`, as in a chat completion, or `prompt`, as in a text completion. Raises ApiError 400."""
    request = validate(TokenizeRequest, body)
    for table in (NOWHERE, {name: why for name, why in spec.refused.items() if name == "tools"}):
        refuse(body, table)
    model = request.model
    if request.text is None:
        messages, images = engine_messages(body["messages"], spec)
        counted: Object = {"model": model, "messages": messages}
        if body.get("tools"):
            counted["tools"] = body["tools"]
        if is_answer_begun(messages):
            counted |= spec.continue_fields
        if spec.tokenize_path:
            return EngineRequest(counted, model, images=images, path=spec.tokenize_path, read=read_tokens)
        return EngineRequest({**counted, "max_tokens": 1}, model, images=images, read=read_usage)
    counted = {"model": model, "prompt": request.text}
    if spec.tokenize_path:
        return EngineRequest(counted, model, path=spec.tokenize_path, read=read_tokens)
    if spec.encode_path:
        return EngineRequest({"model": model, "input": request.text}, model, path=spec.encode_path, read=read_encoded)
    return EngineRequest({**counted, "max_tokens": 1}, model, path=completions.PATH, read=read_usage)


def read_tokens(answer: bytes, *unused: object) -> tuple[bytes, Object]:
    """vLLM's shape, which is our own engine's too."""
    payload = read_json(answer)
    if not isinstance(payload, dict) or not isinstance(payload.get("count"), int):
        raise _not_a_count()
    return _answer(payload["count"], payload.get("tokens"), payload.get("max_model_len"))


def read_encoded(answer: bytes, *unused: object) -> tuple[bytes, Object]:
    """LMDeploy's /v1/encode."""
    payload = read_json(answer)
    if not isinstance(payload, dict) or not isinstance(payload.get("input_ids"), list):
        raise _not_a_count()
    return _answer(len(payload["input_ids"]), payload["input_ids"])


def read_usage(answer: bytes, *unused: object) -> tuple[bytes, Object]:
    """The prompt's length in a completion's usage."""
    _, usage = read_completion(answer)
    if not isinstance(usage.get("prompt_tokens"), int):
        raise _not_a_count()
    return _answer(usage["prompt_tokens"])[0], usage


def _answer(count: int, tokens: Any = None, context: Any = None) -> tuple[bytes, Object]:
    return orjson.dumps({"count": count, "max_model_len": context, "tokens": tokens}), {}


def _not_a_count() -> ApiError:
    return ApiError(502, "The engine does not say how many tokens there are.", code="engine_error")
