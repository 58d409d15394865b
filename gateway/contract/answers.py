"""Answers, as the OpenAPI document describes them. Those of models are the engines' and are not checked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gateway.contract.fields import Object


class ResponseModel(BaseModel):
    """An answer or an object inside one; engines may add fields."""

    model_config = ConfigDict(extra="allow")


class ErrorObject(ResponseModel):
    message: str
    type: str
    param: str | None
    code: str


class Error(ResponseModel):
    """OpenAI's envelope."""

    error: ErrorObject


class Usage(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatChoice(ResponseModel):
    index: int
    message: Object
    finish_reason: str | None = None


class ChatCompletion(ResponseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class TextChoice(ResponseModel):
    index: int
    text: str
    finish_reason: str | None = None


class Completion(ResponseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class TokenCount(ResponseModel):
    count: int
    max_model_len: int | None
    tokens: list[int] | None


class ListedModel(ResponseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lensmith"


class ModelList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[ListedModel]


class Health(ResponseModel):
    status: str


class Ready(ResponseModel):
    status: str
    reason: str | None = None
    models: Object | None = None


# Statuses of refusals and what they mean.
PROBLEMS = {
    400: "The request is wrong; `param` names the field",
    401: "No valid key, where keys are asked for",
    403: "The key may not use this model",
    404: "No such model",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "Not JSON, or compressed",
    429: "A limit of the key is reached",
    500: "A defect",
    502: "The engine failed",
    503: "No place would become free in time, or no engine is ready",
    504: "The engine did not answer in time",
}


def problems(*statuses: int, error: type[BaseModel] = Error) -> dict[int | str, dict[str, Any]]:
    """A route's refusals, for FastAPI's `responses`; without arguments all of them."""
    return {status: {"model": error, "description": PROBLEMS[status]} for status in statuses or PROBLEMS}
