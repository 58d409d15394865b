"""Routes that FastAPI documents and an ASGI application answers."""

from __future__ import annotations

from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import ASGIApp


class AsgiRoute(APIRoute):
    """POST `path` is answered by `app`; its models are for the OpenAPI document.

    Such an application reads its body within limits of its own and ends its work when the client goes, which FastAPI's
    handlers cannot.
    """

    def __init__(self, path: str, app: ASGIApp, *, request: type[BaseModel], **options: Any) -> None:
        async def declaration(body: Any) -> None:  # never called: FastAPI reads the body's type from it
            raise NotImplementedError

        declaration.__annotations__ = {"body": request}
        super().__init__(path, declaration, methods=["POST"], name=path.strip("/").replace("/", "_"), **options)
        self.app = app
