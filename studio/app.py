"""The studio as a FastAPI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from studio.errors import StudioError
from studio.jobs.store import Jobs
from studio.security.access import Access
from studio.security.attempts import Attempts
from studio.security.hosts import Hosts
from studio.security.middleware import HEADERS, Guard, ResponseHeaders
from studio.security.sessions import Sessions
from studio.web.links import STATIC
from studio.web.pages import chat, data, evaluate, home, login, runs, serve, train
from studio.web.render import Studio, show_error
from studio.workspace.folder import Workspace

TICK = 0.5  # seconds between two looks at the jobs


class KeptFiles(StaticFiles):
    """Static files; what is asked for by its digest (`static()` of web/links) may be kept for ever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        versioned = scope["query_string"].startswith(b"v=") and response.status_code == 200
        response.headers["cache-control"] = "max-age=31536000, immutable" if versioned else "no-cache"
        return response


def make_app(folder: Path, access: Access, hosts: Iterable[str] | None = ()) -> FastAPI:
    """The application over a workspace folder. Raises StudioError if the folder cannot be used.

    hosts: names beside the machine's own under which it may be asked; None is every name.
    """
    workspace = Workspace(folder)
    sessions = Sessions(workspace.secret())
    studio = Studio(workspace, Jobs(workspace.folder / "jobs"), access, sessions, Attempts())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(studio.jobs))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    app = FastAPI(
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(ResponseHeaders),
            Middleware(Guard, access=access, sessions=sessions, hosts=Hosts(hosts), refuse=show_error),
        ],
    )
    app.state.studio = studio
    app.mount("/static", KeptFiles(directory=STATIC))
    for page in (home, login, data, train, runs, evaluate, chat, serve):
        app.include_router(page.router)

    @app.exception_handler(StudioError)
    async def explain(request: Request, error: StudioError) -> Response:
        return await show_error(request, error)

    @app.exception_handler(HTTPException)
    async def explain_status(request: Request, error: HTTPException) -> Response:
        known = {404: "errors.no_page", 405: "errors.no_page"}
        return await show_error(
            request, StudioError(known.get(error.status_code, str(error.detail)), error.status_code)
        )

    @app.exception_handler(RequestValidationError)
    async def explain_parameters(request: Request, error: RequestValidationError) -> Response:
        return await show_error(request, StudioError("errors.parameters", 400, name=error.errors()[0]["loc"][-1]))

    @app.exception_handler(Exception)
    async def explain_defect(request: Request, error: Exception) -> Response:
        answer = await show_error(request, StudioError("errors.defect", 500))
        answer.headers.update(HEADERS)  # this handler stands outside of the middleware
        return answer

    return app


async def _watch(jobs: Jobs) -> None:
    """Start what waits and finish what was lost, also while nobody looks."""
    while True:
        with suppress(OSError):  # a full disk: the next look may find room
            await asyncio.to_thread(jobs.tick)
        await asyncio.sleep(TICK)
