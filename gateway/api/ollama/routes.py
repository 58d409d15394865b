"""Ollama's routes that say what there is: models, versions. Nothing here can be pulled, made or deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from gateway.api.ollama.models import (
    OllamaError,
    OllamaModel,
    OllamaModels,
    OllamaShow,
    OllamaShowRequest,
    OllamaVersion,
)
from gateway.contract.answers import problems
from gateway.contract.validation import parse_json, validate
from gateway.errors import ApiError, bad_request
from gateway.http.body import read_body
from gateway.http.disconnect import ClientGone

BODY_LIMIT = 65536
BODY_SECONDS = 30.0
# The version of Ollama whose API this is; some clients ask for a minimum.
VERSION = "0.33.0"
SHOW_REQUEST = OllamaShowRequest.model_json_schema()
# All that is known of a model that an engine serves.
DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def ollama_routes(models: Callable[[Request], list[str]], takes_tools: Callable[[str], bool]) -> APIRouter:
    """`models`: the names that the caller of a request may use; `takes_tools`: whether the model of that name does."""
    router = APIRouter(prefix="/api", tags=["Ollama"])
    since = _date(time.time())
    refusals = problems(401, 500, error=OllamaError)

    def listed(request: Request, **about: Any) -> OllamaModels:
        return OllamaModels(models=[_listed(name, **about) for name in models(request)])

    @router.get("/tags", summary="Ollama's list of models", responses=refusals)
    async def tags(request: Request) -> OllamaModels:
        return listed(request, modified_at=since)

    @router.get("/ps", summary="Ollama's list of loaded models", responses=refusals)
    async def ps(request: Request) -> OllamaModels:
        """All of them, and they stay so."""
        return listed(request, expires_at=_date(time.time() + 86_400), size_vram=0)

    @router.post(
        "/show",
        summary="What Ollama says of a model",
        responses=problems(400, 401, 404, 408, 413, 415, 500, error=OllamaError),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": SHOW_REQUEST}}}},
    )
    async def show(request: Request) -> OllamaShow:
        try:
            body = parse_json(await read_body(request.scope, request.receive, BODY_LIMIT, BODY_SECONDS, lambda _: None))
        except ClientGone:
            raise bad_request("The request was not complete.", None) from None
        asked = validate(OllamaShowRequest, body)
        name = (asked.model or asked.name or "").removesuffix(":latest")
        if not name:
            raise bad_request("'model' is required and must be a string.", "model", "missing_required_parameter")
        if name not in models(request):
            raise ApiError(404, f"model '{name}' not found", code="model_not_found", param="model")
        return OllamaShow(
            modelfile=f"FROM {name}\n",
            details=DETAILS,
            capabilities=["completion", "vision", *(["tools"] if takes_tools(name) else [])],
            modified_at=since,
        )

    @router.get("/version", summary="The version of Ollama's API", responses=refusals)
    async def version() -> OllamaVersion:
        return OllamaVersion(version=VERSION)

    return router


def _listed(name: str, **about: Any) -> OllamaModel:
    """Ollama's command prints the first twelve digits of a digest, so there has to be one."""
    return OllamaModel(name=name, model=name, digest=sha256(name.encode()).hexdigest(), details=DETAILS, **about)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
