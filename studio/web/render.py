"""Templates to answers, and errors to sentences on a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from studio.errors import StudioError
from studio.jobs.store import Jobs
from studio.security.access import Access
from studio.security.attempts import Attempts
from studio.security.middleware import route_path
from studio.security.sessions import Sessions
from studio.web.formats import FILTERS
from studio.web.i18n import LANGUAGES, language_of, sentence, translate
from studio.web.links import link, redirect, root_of, static
from studio.web.said import said, shown
from studio.workspace.folder import Workspace

TEMPLATES = Path(__file__).parent / "templates"
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "lensmith_theme"
NAVIGATION = ("data", "train", "runs", "evaluate", "chat", "serve")  # pages and first part of their paths


@dataclass
class Studio:
    """What pages work with: `request.app.state.studio`."""

    workspace: Workspace
    jobs: Jobs
    access: Access
    sessions: Sessions
    attempts: Attempts


def studio_of(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def translator(request: Request) -> Callable[..., str]:
    """`t("page.key", name=value)` in the reader's language."""
    return partial(translate, language_of(request))


def message_of(request: Request, error: StudioError) -> str:
    """The sentence of an error in the reader's language; what a program said in English stays so where need be."""
    text = sentence(language_of(request), error)
    return said(language_of(request), text) or text


def render(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page, or a part of one, of a template below web/templates.

    Every template has: t, said (web/said.shown), link, static, language, languages, theme, csrf, navigation, section
    (the first part of the path), and the filters of web/formats.
    """
    theme = request.cookies.get(THEME_COOKIE, "auto")
    studio: Studio = request.app.state.studio
    shared = {
        "t": translator(request),
        "said": partial(shown, language_of(request)),
        "root": root_of(request),
        "language": language_of(request),
        "languages": LANGUAGES,
        "theme": theme if theme in THEMES else "auto",
        "csrf": studio.sessions.csrf_token(request.scope.get("session", "")),
        "navigation": NAVIGATION,
        "section": route_path(request.scope).partition("/")[0],
        "access": studio.access.kind,
        "signed_in": bool(request.scope.get("session", "")),
    }
    text = _environment().get_template(template).render(shared | context)
    return HTMLResponse(text, status_code=status)


async def show_error(request: Request, error: StudioError) -> Response:
    """The error as a page, as a part for htmx (which puts it in #messages), or as JSON for scripts."""
    message = message_of(request, error)
    if "hx-request" in request.headers:
        return render(request, "message.html", error.status, message=message)
    accepts = request.headers.get("accept", "")
    if "text/html" not in accepts:
        return JSONResponse({"error": message}, status_code=error.status)
    if error.status == 401 and request.method == "GET":
        path = route_path(request.scope)
        return redirect(request, "login", next=path or None)
    return render(request, "error.html", error.status, message=message)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"link": link, "static": static}
    environment.filters |= FILTERS
    return environment
