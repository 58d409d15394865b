"""The first page: the way from pictures to an API, and what is going on."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.jobs.job import Job
from studio.web.render import render, studio_of

router = APIRouter()
# What a job belongs to (its `about`) -> the pages of such things.
PAGES = {"run": "runs", "evaluation": "evaluate", "dataset": "data"}


@router.get("/")
def index(request: Request) -> Response:
    studio = studio_of(request)
    counts = {kind: len(studio.workspace.names(kind)) for kind in ("datasets", "runs", "models")}
    active = [(job, _page(job)) for job in studio.jobs.list() if job.active]
    return render(request, "home/index.html", counts=counts, active=active, folder=studio.workspace.folder)


def _page(job: Job) -> str | None:
    """The path of the page that shows this job."""
    return next((f"{page}/{job.spec.about[kind]}" for kind, page in PAGES.items() if kind in job.spec.about), None)
