"""The page Serve: export, checks, a plan for a card, gateways, Ollama."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studio.errors import StudioError
from studio.jobs.devices import Devices
from studio.jobs.memory import devices_now, find_device
from studio.jobs.serving import health_of, last_lines, model_names
from studio.serving import checks, gateways
from studio.serving import jobs as serving_jobs
from studio.serving.snippets import snippets
from studio.web.forms import form_fields
from studio.web.links import redirect
from studio.web.render import Studio, render, studio_of, translator
from studio.workspace.sources import find_source, model_sources, trained_sources
from studio.workspace.versions import list_versions

router = APIRouter()
DEVICES = Devices()
SHOWN = 6  # jobs of a kind


@router.get("/serve")
def index(request: Request) -> Response:
    studio = studio_of(request)
    return render(
        request,
        "serve/index.html",
        trained=trained_sources(studio.workspace),
        models=model_sources(studio.workspace),
        devices=devices_now(DEVICES, studio.jobs),
        cards=checks.CARD_NAMES,
        quantizations=serving_jobs.QUANTIZATIONS,
        versions=list_versions(studio.workspace),
        **_jobs(studio),
    )


@router.get("/serve/jobs")
def jobs(request: Request) -> Response:
    """Gateways, exports and installations, for the page that looks again and again."""
    return render(request, "serve/jobs.html", **_jobs(studio_of(request)))


@router.post("/serve/exports")
async def export(request: Request) -> Response:
    studio, fields = studio_of(request), await form_fields(request)
    source = find_source(studio.workspace, fields.get("source", ""))
    await asyncio.to_thread(serving_jobs.export, studio.workspace, studio.jobs, source, fields.get("name", ""))
    return redirect(request, "serve")


@router.post("/serve/ollama")
async def install(request: Request) -> Response:
    studio, fields = studio_of(request), await form_fields(request)
    source = find_source(studio.workspace, fields.get("source", ""))
    given = [fields.get(key, "").strip() for key in ("name", "server", "quantize", "data")]
    serving_jobs.install(studio.workspace, studio.jobs, source, *given)
    return redirect(request, "serve")


@router.post("/serve/jobs/{job_id}/stop")
def stop(request: Request, job_id: str) -> Response:
    studio = studio_of(request)
    if studio.jobs.get(job_id).spec.kind not in (gateways.KIND, serving_jobs.EXPORT, serving_jobs.OLLAMA):
        raise StudioError("errors.missing", status=404, name=job_id)
    studio.jobs.stop(job_id)
    return redirect(request, "serve")


@router.get("/serve/checks")
def check(request: Request, source: str = "", card: str = "", images: int = 1, side: int = 1024) -> Response:
    """Each server's verdict about a model, and LMDeploy's plan for a card."""
    found = find_source(studio_of(request).workspace, source)
    gpu, plan, problem = None, None, ""
    try:
        gpu = checks.this_or(card)
        plan = checks.plan(found, gpu, images, side, None)
    except StudioError as error:
        t = translator(request)
        problem = t(error.message, **error.values) if error.message.startswith(("serve.", "errors.")) else error.message
    verdicts = checks.verdicts(found, gpu)
    return render(request, "serve/checks.html", source=found, verdicts=verdicts, plan=plan, problem=problem)


@router.post("/serve/gateways")
async def start(request: Request) -> Response:
    studio, fields = studio_of(request), await form_fields(request)
    source = find_source(studio.workspace, fields.get("source", ""))
    device = find_device(devices_now(DEVICES, studio.jobs), fields.get("device", ""))
    job = gateways.start(
        studio.workspace,
        studio.jobs,
        source,
        device,
        name=fields.get("name", "").strip(),
        port=fields.get("port", "").strip(),
        everywhere=fields.get("everywhere") == "on",
    )
    return redirect(request, f"serve/gateways/{job.id}")


@router.get("/serve/gateways/{job_id}")
def gateway(request: Request, job_id: str) -> Response:
    studio = studio_of(request)
    job = gateways.find(studio.jobs, job_id)
    secret = gateways.secret_of(studio.workspace, job)
    host = "127.0.0.1" if job.spec.about["host"] == gateways.LOOPBACK else request.url.hostname or "127.0.0.1"
    url = f"http://{host}:{job.spec.about['port']}"
    names = model_names(job)
    programs = snippets(url, names[-1], bool(secret))
    return render(
        request,
        "serve/gateway.html",
        job=job,
        url=url,
        names=names,
        secret=secret,
        programs=programs,
        lines=last_lines(job),
    )


@router.get("/serve/gateways/{job_id}/now")
async def now(request: Request, job_id: str, history: bool = False) -> Response:
    """Where a gateway stands and its figures, for the charts. history: and those that were seen before."""
    studio, t = studio_of(request), translator(request)
    job = gateways.find(studio.jobs, job_id)
    secret = gateways.secret_of(studio.workspace, job)
    earlier = gateways.history_of(job) if history else []
    async with httpx.AsyncClient(trust_env=False) as client:
        health = await health_of(client, job)
        figures = await gateways.figures_of(client, job, secret) if job.state == "running" else gateways.Figures()
    point = gateways.note(job, figures) if health.phase == "ready" else figures.as_plain()
    title = t(f"serve.phase_{health.phase}")
    about = {"phase": health.phase, "title": title, "message": health.message, "lines": list(last_lines(job))}
    return JSONResponse({**about, "figures": point, "history": earlier})


def _jobs(studio: Studio) -> dict[str, Any]:
    kinds = (gateways.KIND, serving_jobs.EXPORT, serving_jobs.OLLAMA)
    found = {kind: list(studio.jobs.list(kind))[:SHOWN] for kind in kinds}
    active = any(job.active for jobs in found.values() for job in jobs)
    return {
        "gateways": found[gateways.KIND],
        "others": found[kinds[1]] + found[kinds[2]],
        "active": active,
        "last_lines": last_lines,
    }
