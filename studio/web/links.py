"""Links that work below any path prefix: relative to the studio's root, which each page names in its <base>."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from studio.errors import StudioError
from studio.security.middleware import route_path

STATIC = Path(__file__).parent / "static"


def link(path: str, **query: object) -> str:
    """A link of a template: `link("runs/" ~ name)`. Everything but slashes is quoted."""
    given = {key: value for key, value in query.items() if value is not None}
    return (quote(path.lstrip("/")) or "./") + (f"?{urlencode(given)}" if given else "")


def root_of(request: Request) -> str:
    """The way from this page up to the studio's root: "./" or "../", "../../" …"""
    return "../" * route_path(request.scope).count("/") or "./"


def redirect(request: Request, path: str, **query: object) -> Response:
    """See another page (303), or for a request of htmx: let the browser load it."""
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"hx-redirect": link(path, **query)})
    target = link(path, **query)
    return Response(status_code=303, headers={"location": root_of(request) + target.removeprefix("./")})


def local_path(text: str) -> str:
    """A path below the studio's root that came from outside, as where to go after the login. Raises StudioError."""
    if text.startswith("/") or "\\" in text or ":" in text.partition("?")[0] or ".." in text:
        raise StudioError("errors.bad_path", path=text[:200])
    return text


@cache
def static(name: str) -> str:
    """A link to a file of web/static whose address changes with its content, so that browsers may keep it."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"static/{name}?v={digest}"
