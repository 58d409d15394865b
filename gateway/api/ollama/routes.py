"""Ollama's routes that say what there is: models, versions. Nothing here can be pulled, made or deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from gateway.api.chat import parse_json
from gateway.errors import ApiError, bad_request
from gateway.http.body import read_body
from gateway.http.disconnect import ClientGone

BODY_LIMIT = 65536
BODY_SECONDS = 30.0
# The version of Ollama whose API this is; some clients ask for a minimum.
VERSION = "0.33.0"
# All that is known of a model that an engine serves.
DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def ollama_routes(models: Callable[[Request], list[str]]) -> APIRouter:
    """`models`: the names that the caller of a request may use."""
    router = APIRouter(prefix="/api", tags=["Ollama"])
    since = _date(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"name": name, "model": name, "size": 0, "digest": "", "details": DETAILS}

    @router.get("/tags")
    async def tags(request: Request) -> dict[str, Any]:
        """The models there are."""
        return {"models": [{**described(name), "modified_at": since} for name in models(request)]}

    @router.get("/ps")
    async def ps(request: Request) -> dict[str, Any]:
        """The models that are loaded: all of them, and they stay so."""
        until = _date(time.time() + 86_400)
        return {"models": [{**described(name), "expires_at": until, "size_vram": 0} for name in models(request)]}

    @router.post("/show")
    async def show(request: Request) -> dict[str, Any]:
        """What is known of one model."""
        try:
            body = parse_json(await read_body(request.scope, request.receive, BODY_LIMIT, BODY_SECONDS, lambda _: None))
        except ClientGone:
            raise bad_request("The request was not complete.", None) from None
        name = body.get("model") or body.get("name")
        if not isinstance(name, str) or not name:
            raise bad_request("'model' is required and must be a string.", "model", "missing_required_parameter")
        if name not in models(request):
            raise ApiError(404, f"model '{name}' not found", code="model_not_found", param="model")
        return {
            "modelfile": f"FROM {name}\n",
            "parameters": "",
            "template": "",
            "details": DETAILS,
            "model_info": {},
            "capabilities": ["completion", "vision"],
            "modified_at": since,
        }

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The version of Ollama whose API this is."""
        return {"version": VERSION}

    return router


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
