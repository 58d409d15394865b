"""The page Evaluate."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.web.render import render

router = APIRouter()


@router.get("/evaluate")
def index(request: Request) -> Response:
    return render(request, "evaluate/index.html")
