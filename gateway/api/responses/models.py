"""The request body and the answer of OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.contract.answers import ResponseModel
from gateway.contract.fields import Object, RequestModel, Temperature, Text, Tokens, TopP


class FunctionTool(RequestModel):
    type: Literal["function"]
    name: str


class ResponseRequest(RequestModel):
    model: Text
    input: str | Annotated[list[Object], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    text: Object | None = None
    tools: list[FunctionTool] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    user: str | None = None
    metadata: Object | None = None


class Response(ResponseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[Object]
    store: Literal[False] = False
    usage: Object | None
