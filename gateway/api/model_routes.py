"""GET /v1/models: OpenAI's list of models."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request

from gateway.contract.answers import ListedModel, ModelList, problems
from gateway.errors import ApiError


def model_routes(models: Callable[[Request], list[str]]) -> APIRouter:
    """`models`: the names that the caller of a request may use."""
    router = APIRouter(prefix="/v1/models")
    created = int(time.time())

    @router.get("", summary="The models there are", responses=problems(401, 500))
    async def list_models(request: Request) -> ModelList:
        return ModelList(data=[ListedModel(id=name, created=created) for name in models(request)])

    @router.get("/{name:path}", summary="One model", responses=problems(401, 404, 500))
    async def one_model(request: Request, name: str) -> ListedModel:
        if not name:
            raise ApiError(404, "There is nothing at this path; use /v1/models.", code="not_found")
        if name not in models(request):
            raise ApiError(404, "The model does not exist.", code="model_not_found", param="model")
        return ListedModel(id=name, created=created)

    return router
