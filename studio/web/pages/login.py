"""The login: the printed link, the password, or an API key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from studio.errors import StudioError
from studio.security.middleware import cookie
from studio.web.forms import form_fields
from studio.web.links import local_path, redirect
from studio.web.render import message_of, render, studio_of

router = APIRouter()


@router.get("/login")
async def form(request: Request, token: str = "", next: str = "") -> Response:
    """The form, or with the printed link's token: straight in."""
    if token:
        return await _log_in(request, token, next)
    return render(request, "login.html", next=next, message=None)


@router.post("/login")
async def log_in(request: Request) -> Response:
    fields = await form_fields(request)
    return await _log_in(request, fields.get("secret", ""), fields.get("next", ""))


@router.post("/logout")
async def log_out(request: Request) -> Response:
    answer = redirect(request, "login")
    answer.headers["set-cookie"] = cookie("", max_age=0)
    return answer


async def _log_in(request: Request, secret: str, target: str) -> Response:
    studio = studio_of(request)
    try:
        studio.attempts.check()
        holder = studio.access.admit(secret)
        if holder is None:
            studio.attempts.failed()
            await asyncio.sleep(0.2)
            raise StudioError(f"login.wrong_{studio.access.kind}", status=401)
    except StudioError as error:
        return render(request, "login.html", error.status, next=target, message=message_of(request, error))
    answer = redirect(request, local_path(target))
    answer.headers["set-cookie"] = cookie(studio.sessions.issue(holder))
    return answer
