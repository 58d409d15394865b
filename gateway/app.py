"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.api.chat import check_chat
from gateway.api.completions import check_completion
from gateway.api.ollama.requests import translate_chat, translate_generate
from gateway.api.ollama.routes import ollama_routes
from gateway.api.openapi import document
from gateway.api.responses.requests import translate_response
from gateway.api.tokenize import check_tokenize
from gateway.errors import ApiError, crashed
from gateway.http.middleware import ByPort, Direct, RequestIds
from gateway.http.respond import error_body
from gateway.proxy.exchange import ChatCompletions, Check, Translate
from gateway.runtime.exposition import Exposition
from gateway.runtime.management import management_routes
from gateway.runtime.service import Service
from gateway.tenants.auth import Authenticate
from gateway.tenants.limits import Tenant

# Routes of the request path: how their requests become chat completions, if they aren't yet, and what is checked.
ROUTES: dict[str, tuple[Translate | None, Check]] = {
    "/v1/chat/completions": (None, check_chat),
    "/v1/completions": (None, check_completion),
    "/v1/responses": (translate_response, check_chat),
    "/tokenize": (None, check_tokenize),
    "/api/chat": (translate_chat, check_chat),
    "/api/generate": (translate_generate, check_chat),
}


def create_app(service: Service, management_port: int | None = None) -> ASGIApp:
    """The application in front of a service, which it starts and stops with itself.

    `management_port`: where /metrics and the details of /ready are then, and nowhere else.
    """
    metrics = service.metrics
    exposition = Exposition(lambda: service.models, metrics)
    created = int(time.time())
    endpoints: dict[str, ASGIApp] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # ASGI endpoints: they watch for a client's disconnect themselves.
        for path, (translate, check) in ROUTES.items():
            endpoints[path] = ChatCompletions(service, translate, check)
            app.router.routes.append(Route(path, endpoints[path], methods=["POST"]))  # 405 for other methods
        await service.start()
        lag = asyncio.create_task(metrics.watch_loop())
        try:
            yield
        finally:
            lag.cancel()
            await exposition.close()
            await service.stop()

    app = FastAPI(title="Lensmith", lifespan=lifespan, redirect_slashes=False, redoc_url=None)
    app.openapi = lambda: document(version("lensmith"), keys=service.ring is not None, metrics=management_port is None)  # type: ignore[method-assign]
    _answer_errors(app)

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "lensmith"}

    def allowed(request: Request) -> list[str]:
        tenant: Tenant | None = request.scope.get("tenant")
        return [name for name in service.models.listed if service.models.allowed(tenant, name)]

    app.include_router(ollama_routes(allowed))

    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in allowed(request)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> dict[str, Any]:
        if name not in allowed(request):
            raise ApiError(404, "The model does not exist.", code="model_not_found", param="model")
        return described(name)

    alone = management_port is None
    app.include_router(
        management_routes(service, exposition if alone else None, details=alone and service.ring is None)
    )
    served: ASGIApp = Direct(app, endpoints)
    if service.ring is not None:
        served = Authenticate(served, service.ring, metrics)
    if management_port is not None:
        inside = FastAPI(openapi_url=None, redirect_slashes=False)
        _answer_errors(inside)
        inside.include_router(management_routes(service, exposition, details=True))
        served = ByPort(inside, management_port, served)
    return RequestIds(served)


def _answer_errors(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Exception, _crash)


def _envelope(request: Request, error: ApiError) -> Response:
    body = error_body(request.scope, error)
    return Response(body, error.status, headers=error.headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _envelope(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or a route that has no such method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return _envelope(request, ApiError(404, "There is nothing at this path.", code="not_found", headers=headers))
    if error.status_code == 405:
        message = f"{request.method} is not allowed here; use {headers.get('Allow', 'another method')}."
        return _envelope(request, ApiError(405, message, code="method_not_allowed", headers=headers))
    return _envelope(request, ApiError(error.status_code, str(error.detail), code="invalid_request", headers=headers))


async def _crash(request: Request, error: Exception) -> Response:
    """A defect of ours. Starlette raises it again after this answer, so that it is logged with its traceback."""
    return _envelope(request, crashed())
