"""The fields of a plain form (application/x-www-form-urlencoded)."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.requests import Request

from studio.errors import StudioError

MAX_FORM = 1 << 20  # bytes


async def form_fields(request: Request) -> dict[str, str]:
    """The last value of each field. Raises StudioError (413) for one that is too long."""
    return {name: values[-1] for name, values in (await form_lists(request)).items()}


async def form_lists(request: Request) -> dict[str, list[str]]:
    """All values of each field, for check boxes of one name. Raises StudioError (413) for a form that is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise StudioError("errors.too_long", status=413)
    return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
