"""What is for operators: liveness, readiness and its reasons, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.contract.answers import Health, Ready
from gateway.runtime.exposition import Exposition
from gateway.runtime.service import SHUTDOWN_RETRY, Service


def management_routes(service: Service, exposition: Exposition | None, details: bool) -> APIRouter:
    """`exposition`: None leaves /metrics out. `details`: whether /ready tells of models, engines and their problems."""
    router = APIRouter()

    @router.get("/health", summary="Whether the process lives")
    async def health() -> Health:
        """Whether this process lives. Whether it can answer requests is /ready's business."""
        return Health(status="ok")

    @router.get(
        "/ready",
        summary="Whether a model can be used",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "None can"}},
    )
    async def ready() -> Response:
        """200 while at least one model can be used; what is the matter with the others is in the answer."""
        models = service.models.all
        described = {"models": {model.name: model.described() for model in models}} if details else {}
        waiting = [model for model in models if not model.ready]
        if len(waiting) < len(models) and not service.leaving:
            return JSONResponse({"status": "degraded" if waiting else "ready", **described})
        reasons = ["The gateway is shutting down."] if service.leaving else [model.reason for model in waiting]
        reason = {"reason": " ".join(dict.fromkeys(reasons))} if details else {}
        wait = min((model.retry_after for model in waiting), default=SHUTDOWN_RETRY)
        return JSONResponse(
            {"status": "not ready", **reason, **described},
            status_code=503,
            headers={"retry-after": str(max(1, round(wait)))},
        )

    if exposition is not None:

        @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            return Response(await exposition.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
