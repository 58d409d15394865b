"""The page Chat: one engine, its base and tuned sides, asked the same thing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from studio.chat import engine
from studio.chat.answers import answer
from studio.chat.conversation import MAX_BODY, keep_conversation, kept_conversation, parse_question
from studio.errors import StudioError
from studio.jobs.devices import Devices
from studio.jobs.job import Job
from studio.jobs.memory import devices_now, find_device
from studio.jobs.serving import health_of, last_lines
from studio.web.forms import form_fields
from studio.web.links import redirect
from studio.web.render import Studio, render, studio_of, translator
from studio.workspace.sources import find_source, model_sources, trained_sources

router = APIRouter()
DEVICES = Devices()


@router.get("/chat")
def index(request: Request, source: str = "") -> Response:
    studio = studio_of(request)
    job = engine.current(studio.jobs)
    loaded = job if job is not None and job.active else None
    return render(
        request,
        "chat/index.html",
        job=loaded,
        sides=[side for side in ("base", "tuned") if loaded is not None and loaded.spec.about[side]],
        trained=[] if loaded else trained_sources(studio.workspace),
        models=[] if loaded else model_sources(studio.workspace),
        devices=[] if loaded else devices_now(DEVICES, studio.jobs),
        chosen=source,
        broken=job if job is not None and job.state in ("failed", "lost") else None,
        lines=last_lines(job) if job is not None and job.state in ("failed", "lost") else (),
    )


@router.post("/chat/engine")
async def load(request: Request) -> Response:
    studio, fields = studio_of(request), await form_fields(request)
    source = find_source(studio.workspace, fields.get("path", "").strip() or fields.get("source", ""))
    device = find_device(devices_now(DEVICES, studio.jobs), fields.get("device", ""))
    engine.start(studio.workspace, studio.jobs, source, device)
    return redirect(request, "chat")


@router.post("/chat/engine/unload")
def unload(request: Request) -> Response:
    engine.unload(studio_of(request).jobs)
    return redirect(request, "chat")


@router.get("/chat/engine")
async def state(request: Request) -> Response:
    """Where the engine stands, for the page that waits for it."""
    studio, t = studio_of(request), translator(request)
    job = engine.current(studio.jobs)
    if job is None:
        return JSONResponse({"phase": "none", "title": t("chat.phase_none"), "message": "", "lines": []})
    async with httpx.AsyncClient(trust_env=False) as client:
        health = await health_of(client, job)
    title = t(f"chat.phase_{health.phase}")
    return JSONResponse(
        {"phase": health.phase, "title": title, "message": health.message, "lines": health.lines, "job": job.id}
    )


@router.post("/chat/answers")
async def ask(request: Request) -> Response:
    """One side's answer as JSON lines while it is made."""
    studio, t = studio_of(request), translator(request)
    question = parse_question(await _body(request))
    job = _loaded(studio)

    async def lines() -> AsyncIterator[bytes]:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            aclosing(answer(client, studio.jobs, job, question)) as events,
        ):
            async for event in events:
                if event["kind"] == "error" and event["key"]:
                    event["message"] = f"{t(event['key'])} {event['message']}".strip()
                yield json.dumps(event).encode() + b"\n"

    headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


@router.get("/chat/conversation")
def conversation(request: Request) -> Response:
    """What was said with the engine that is loaded, for a page that is opened anew."""
    return JSONResponse(kept_conversation(_loaded(studio_of(request)).folder).model_dump())


@router.put("/chat/conversation")
async def keep(request: Request) -> Response:
    """Keep what was said so far, in place of what was kept before."""
    body = await _body(request)
    await run_in_threadpool(keep_conversation, _loaded(studio_of(request)).folder, body)
    return Response(status_code=204)


def _loaded(studio: Studio) -> Job:
    """The engine's job. Raises StudioError (409) if none is loaded."""
    job = engine.current(studio.jobs)
    if job is None or not job.active:
        raise StudioError("chat.not_loaded", status=409)
    return job


async def _body(request: Request) -> bytes:
    """Raises StudioError (413)."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise StudioError("chat.too_large", status=413, limit=MAX_BODY >> 20)
    return bytes(body)
