"""The gateway as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPBearer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.model_routes import model_routes
from gateway.api.ollama.routes import ollama_routes
from gateway.api.pages import page_routes
from gateway.errors import ApiError, crashed
from gateway.http.middleware import Below, ByPort, Direct, HeadAsGet, RequestIds
from gateway.http.missing import explain_missing
from gateway.http.respond import error_body
from gateway.proxy.data_routes import data_routes
from gateway.runtime.exposition import Exposition
from gateway.runtime.management import management_routes
from gateway.runtime.service import Service
from gateway.tenants.auth import Authenticate
from gateway.tenants.limits import Tenant
from modelfiles.version import lensmith_version

# What a web page may read of an answer beside its body.
EXPOSED = (
    *("x-request-id", "retry-after"),
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
KEY = HTTPBearer(scheme_name="key", auto_error=False, description="Asked for by `Authenticate`, a middleware.")


class GatewayApp(FastAPI):
    """FastAPI, but for the status of wrong requests, 400 as OpenAI's and not 422, and for the order of middleware."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without FastAPI's own spans: it looks for somebody to send them to with each request, and ours say more."""
        if scope["type"] != "http" or self.middleware_stack is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Ours goes around FastAPI's own, so that the answer to a defect has an id too and the fast path skips it."""
        ours, self.user_middleware = self.user_middleware, []
        try:
            app = super().build_middleware_stack()
        finally:
            self.user_middleware = ours
        for added in reversed(ours):
            app = added.cls(app, *added.args, **added.kwargs)
        return app

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def create_app(service: Service, management_port: int | None = None, studio: Starlette | None = None) -> FastAPI:
    """The application in front of a service, which it starts and stops with itself.

    `management_port`: where /metrics and the details of /ready are then, and nowhere else. `studio`: the application
    shown at /studio, which asks for keys itself.
    """
    exposition = Exposition(lambda: service.models, service.metrics, service.own_metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        lag = asyncio.create_task(service.metrics.watch_loop())
        try:
            async with studio.router.lifespan_context(studio) if studio else nullcontext():
                yield
        finally:
            lag.cancel()
            await exposition.close()
            await service.stop()

    def allowed(request: Request) -> list[str]:
        tenant: Tenant | None = request.scope.get("tenant")
        return [name for name in service.models.listed if service.models.allowed(tenant, name)]

    def takes_tools(name: str) -> bool:
        model = service.models.get(name)
        return model is not None and "tools" not in model.spec.refused

    keys = [] if service.ring is None else [Security(KEY)]
    routes = data_routes(service, keys)
    middleware = [
        Middleware(RequestIds),
        Middleware(Direct, endpoints={route.path: route.app for route in routes}),
        Middleware(HeadAsGet),
    ]
    if service.ring is not None:
        middleware.insert(1, Middleware(Authenticate, ring=service.ring, metrics=service.metrics))
    if service.settings.cors_origins:  # before keys are asked for: a browser's preflight has none
        cors = Middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
        middleware.insert(1, cors)
    if studio is not None:
        middleware.insert(1, Middleware(Below, prefix="/studio", mounted=studio))
    if management_port is not None:
        inside = FastAPI(openapi_url=None, redirect_slashes=False)
        _handle_errors(inside)
        inside.include_router(management_routes(service, exposition, details=True))
        middleware.insert(1, Middleware(ByPort, management=inside, port=management_port))
    app = GatewayApp(
        title="Lensmith",
        version=lensmith_version(),
        lifespan=lifespan,
        middleware=middleware,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page loads its scripts from the internet
        redoc_url=None,
    )
    _handle_errors(app)
    app.router.routes += routes
    app.include_router(page_routes(app.openapi, allowed if service.ring is None else None))
    app.include_router(model_routes(allowed), dependencies=keys)
    app.include_router(ollama_routes(allowed, takes_tools), dependencies=keys)
    alone = management_port is None
    app.include_router(
        management_routes(service, exposition if alone else None, details=alone and service.ring is None)
    )
    return app


def _handle_errors(app: FastAPI) -> None:
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
        known = request.app.openapi()["paths"] if request.app.openapi_url else ()
        message = explain_missing(request.url.path, known)
        return _envelope(request, ApiError(404, message, code="not_found", headers=headers))
    if error.status_code == 405:
        message = f"{request.method} is not allowed here; use {headers.get('Allow', 'another method')}."
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            message = (
                "Web pages of other origins may not call this API; whoever runs it can allow some by --cors-origins."
            )
        return _envelope(request, ApiError(405, message, code="method_not_allowed", headers=headers))
    return _envelope(request, ApiError(error.status_code, str(error.detail), code="invalid_request", headers=headers))


async def _crash(request: Request, error: Exception) -> Response:
    """A defect of ours. Starlette raises it again after this answer, so that it is logged with its traceback."""
    return _envelope(request, crashed())
