"""The routes that ask an engine: their bodies and answers, how they become chat completions, how they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.params import Depends
from pydantic import BaseModel

from gateway.api.anthropic.models import (
    AnthropicError,
    CountedTokens,
    CountTokensRequest,
    MessageAnswer,
    MessagesRequest,
)
from gateway.api.anthropic.requests import check_count, translate_count, translate_messages
from gateway.api.chat import check_chat
from gateway.api.completions import check_completion
from gateway.api.ollama.models import OllamaAnswer, OllamaChatRequest, OllamaError, OllamaGenerateRequest
from gateway.api.ollama.requests import translate_chat, translate_generate
from gateway.api.responses.models import Response, ResponseRequest
from gateway.api.responses.requests import translate_response
from gateway.api.tokenize import check_tokenize
from gateway.contract.answers import ChatCompletion, Completion, Error, TokenCount, problems
from gateway.contract.requests import ChatRequest, CompletionRequest, TokenizeRequest
from gateway.http.routes import AsgiRoute
from gateway.proxy.exchange import ChatCompletions, Check, Translate
from gateway.runtime.service import Service

EVENTS, LINES = "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class DataRoute:
    """`stream`: the content type of its streams, empty without any; `translate`: None for OpenAI's completions."""

    path: str
    summary: str
    request: type[BaseModel]
    answer: type[BaseModel]
    stream: str = EVENTS
    translate: Translate | None = None
    check: Check = check_chat
    error: type[BaseModel] = Error


DATA_ROUTES = (
    DataRoute("/v1/chat/completions", "Chat, with images", ChatRequest, ChatCompletion),
    DataRoute("/v1/completions", "Go on with a text", CompletionRequest, Completion, check=check_completion),
    DataRoute(
        *("/v1/responses", "OpenAI's Responses, without a store", ResponseRequest, Response),
        translate=translate_response,
    ),
    DataRoute("/tokenize", "Count a prompt's tokens", TokenizeRequest, TokenCount, "", check=check_tokenize),
    DataRoute(
        *("/v1/messages", "Anthropic's messages", MessagesRequest, MessageAnswer),
        translate=translate_messages,
        error=AnthropicError,
    ),
    DataRoute(
        *("/v1/messages/count_tokens", "Count a message's tokens", CountTokensRequest, CountedTokens, ""),
        translate=translate_count,
        check=check_count,
        error=AnthropicError,
    ),
    DataRoute(
        *("/api/chat", "Ollama's chat", OllamaChatRequest, OllamaAnswer, LINES),
        translate=translate_chat,
        error=OllamaError,
    ),
    DataRoute(
        *("/api/generate", "Ollama's prompt", OllamaGenerateRequest, OllamaAnswer, LINES),
        translate=translate_generate,
        error=OllamaError,
    ),
)


def data_routes(service: Service, dependencies: Sequence[Depends]) -> list[AsgiRoute]:
    """`dependencies`: what the OpenAPI document says of keys."""
    routes = []
    for row in DATA_ROUTES:
        responses = problems(error=row.error)
        if row.stream:
            responses[200] = {"content": {row.stream: {}}}
        routes.append(
            AsgiRoute(
                row.path,
                ChatCompletions(service, row.translate, row.check),
                request=row.request,
                response_model=row.answer,
                response_description="The answer",
                summary=row.summary,
                responses=responses,
                dependencies=list(dependencies),
            )
        )
    return routes
