"""Ollama's request bodies and answers: https://github.com/ollama/ollama/blob/main/docs/api.md."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.contract.answers import ResponseModel
from gateway.contract.fields import Object, RequestModel, Text

Role = Literal["system", "user", "assistant", "tool"]
Images = list[str]


class OllamaMessage(RequestModel):
    role: Role
    content: str | None = None
    images: Images | None = Field(None, description="Files in base64.")


class OllamaRequest(RequestModel):
    """What /api/chat and /api/generate have in common. null counts as absent."""

    model: Text
    stream: bool | None = Field(None, description="true if absent.")
    format: Literal["json", ""] | Object | None = None
    options: Object | None = Field(None, description="How to sample: temperature, num_predict, stop and others.")


class OllamaChatRequest(OllamaRequest):
    messages: list[OllamaMessage] | None = Field(None, description="Without any the model is loaded, which it is.")


class OllamaGenerateRequest(OllamaRequest):
    prompt: str | None = None
    system: str | None = None
    images: Images | None = Field(None, description="Files in base64.")


class OllamaShowRequest(RequestModel):
    model: str | None = None
    name: str | None = Field(None, description="What older clients send instead of `model`.")


class OllamaError(ResponseModel):
    error: str


class OllamaAnswer(ResponseModel):
    model: str
    created_at: str
    done: bool


class OllamaModel(ResponseModel):
    name: str
    model: str
    size: int = 0
    digest: str = ""
    details: Object


class OllamaModels(ResponseModel):
    models: list[OllamaModel]


class OllamaShow(ResponseModel):
    modelfile: str
    parameters: str = ""
    template: str = ""
    details: Object
    model_info: Object = Field(default_factory=dict)
    capabilities: list[str]
    modified_at: str


class OllamaVersion(ResponseModel):
    version: str
