"""The first page: the way from pictures to an API, and what is going on."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.web.render import render, studio_of

router = APIRouter()


@router.get("/")
def index(request: Request) -> Response:
    studio = studio_of(request)
    counts = {kind: len(studio.workspace.names(kind)) for kind in ("datasets", "runs", "models")}
    active = [job for job in studio.jobs.list() if job.active]
    return render(request, "home/index.html", counts=counts, active=active, folder=studio.workspace.folder)
