"""POST /v1/completions: text completions, whose prompt is a text as it stands, without a chat template."""

from __future__ import annotations

import dataclasses

from gateway.api.chat import EngineRequest, engine_request, refuse
from gateway.api.unsupported import NOWHERE_IN_TEXT
from gateway.contract.fields import Object
from gateway.contract.requests import CompletionRequest
from gateway.contract.validation import validate
from gateway.engines.extra_fields import apply_extra_fields
from gateway.engines.spec import EngineSpec

PATH = "v1/completions"
DEFAULT_MAX_TOKENS = 16  # OpenAI's


def check_completion(body: Object, spec: EngineSpec) -> EngineRequest:
    """Check the fields of https://platform.openai.com/docs/api-reference/completions/create. Raises ApiError 400."""
    request = validate(CompletionRequest, body)
    for table in (NOWHERE_IN_TEXT, spec.refused, spec.refused_in_text):
        refuse(body, table)
    apply_extra_fields(body, CompletionRequest.model_fields, spec.extra_fields, spec.name, spec.max_pixels)
    if request.max_tokens is None and request.max_completion_tokens is None:
        body["max_tokens"] = DEFAULT_MAX_TOKENS
    # A body of its own for each prompt, whose stop strings are cut by themselves.
    parts = [engine_request({**body, "prompt": text}, request, spec, path=PATH) for text in request.texts]
    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(parts[0], body={}, stops=None, parts=parts)
