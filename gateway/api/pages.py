"""Pages for people: `/`, which says what this is, and `/docs`. They need nothing from the internet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from gateway.contract.fields import Object

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:0 .2em}td,th{text-align:left;padding:0 1em 0 0;vertical-align:top}"
    "summary{cursor:pointer;margin:.4em 0}"
)


def page_routes(document: Callable[[], Object], models: Callable[[Request], list[str]] | None) -> APIRouter:
    """`document`: the OpenAPI document; `models`: the names to list, None where they are for holders of keys."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def front(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Lensmith is running\n")  # as programs for Ollama ask
        names = "".join(f"<li><code>{escape(name)}</code>" for name in models(request)) if models else ""
        listed = f"<p>Models:<ul>{names}</ul>" if names else "<p><code>GET /v1/models</code> lists the models."
        text = (
            "<p>This is a gateway to vision-language models. It speaks OpenAI's, Anthropic's and Ollama's APIs: give a "
            f"client the address of this page, for OpenAI's with <code>/v1</code> behind it.{listed}"
            '<p><a href="docs">Its API</a> &middot; <a href="openapi.json">as an OpenAPI document</a> &middot; '
            '<a href="ready">whether it is ready</a>'
        )
        return HTMLResponse(_page("Lensmith", text))

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_page("Lensmith's API", "".join(_operations(document()))))

    return router


def _page(title: str, text: str) -> str:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}<h1>{title}</h1>{text}</html>"


def _operations(document: Object) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            summary = f"<code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            fields = _fields(_resolved(body, schemas)) if body else ""
            answers = operation["responses"].items()
            statuses = "".join(f"<tr><td>{status}<td>{escape(answer['description'])}" for status, answer in answers)
            yield f"<details><summary>{summary}</summary>{fields}<h4>Answers</h4><table>{statuses}</table></details>"


def _resolved(schema: Object, schemas: Object) -> Object:
    found: Object = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    return found


def _fields(schema: Object) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name not in required else ' *'}<td>{escape(_kind(field))}"
        f"<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<h4>Body (* is required)</h4><table>{rows}</table>"


def _kind(schema: Any) -> str:
    """A field's type in a few words."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[key] if one.get("type") != "null"))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) or '""' for value in schema.get("enum", [schema.get("const")]))
    words = str(schema.get("type", "anything"))
    if words == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = [("above", "exclusiveMinimum"), ("from", "minimum"), ("to", "maximum")]
    return " ".join([words, *(f"{word} {schema[key]:g}" for word, key in limits if key in schema)])
