"""The page Runs."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.web.render import render

router = APIRouter()


@router.get("/runs")
def index(request: Request) -> Response:
    return render(request, "runs/index.html")
