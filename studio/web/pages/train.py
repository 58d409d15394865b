"""The page Train: what is to be learnt from what, whether it would work, and its start."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelfiles.hardware.gpus import GPU_MODELS
from studio.errors import StudioError
from studio.jobs.devices import Device, Devices
from studio.training import checks, runs
from studio.training.draft import ADVANCED, OTHER, Draft, Problem, fields_of_run, read_draft
from studio.training.goals import GOALS
from studio.training.schema_form import as_text, schema_groups
from studio.web.forms import form_lists
from studio.web.links import redirect
from studio.web.render import Studio, render, studio_of, translator
from studio.workspace.models import known_models
from studio.workspace.versions import list_versions

router = APIRouter(prefix="/train")
_devices = Devices()
SHOWN_RUNS = 6


@router.get("")
def index(request: Request, data: str = "", run: str = "") -> Response:
    """data: the dataset, or its version (NAME@N), chosen at first; run: the one whose recipe is filled in."""
    studio = studio_of(request)
    filled = fields_of_run(studio.workspace, run) if run else {"data": data}
    versions, models, devices = list_versions(studio.workspace), known_models(studio.workspace), _list(studio)
    if not any(device.is_gpu for device in devices):
        models.sort(key=lambda model: model.parameters)
    models.sort(key=lambda model: model.tuned)  # what is chosen at first was not trained here already
    return render(
        request,
        "train/index.html",
        versions=versions,
        models=models,
        filled=_chosen(filled, [version.key for version in versions], [model.value for model in models]),
        goals=GOALS,
        cards=GPU_MODELS,
        groups=schema_groups(),
        as_text=as_text,
        **_now(studio, devices),
    )


@router.get("/now")
def now(request: Request) -> Response:
    """The devices and the latest runs, which the page asks for again and again."""
    studio = studio_of(request)
    return render(request, "train/now.html", **_now(studio, _list(studio)))


@router.post("/preview")
async def preview(request: Request) -> Response:
    """What the form stands for: recipe, command, and a sentence for each field that is wrong."""
    studio, draft = studio_of(request), await _draft(request)
    t = translator(request)
    problems = {name: _sentence(t, problem) for name, problem in draft.problems.items()}
    return JSONResponse(
        {
            "name": draft.name,
            "yaml": draft.yaml,
            "command": draft.command_line(studio.workspace),
            "digest": draft.digest,
            "problems": problems,
            "suggested": {key: as_text(value) for key, value in draft.suggested.items()},
        }
    )


@router.post("/check")
async def check(request: Request, measure: bool = False) -> Response:
    studio, draft = studio_of(request), await _draft(request)
    if draft.problems:
        raise StudioError("train.mend_first", status=422)
    job = await run_in_threadpool(checks.start_check, draft, studio.workspace, studio.jobs, measure)
    return await run_in_threadpool(verdict, request, job.id)


@router.get("/checks/{job_id}")
def verdict(request: Request, job_id: str) -> Response:
    """What a check has found so far."""
    studio = studio_of(request)
    job = studio.jobs.get(job_id)
    if job.spec.kind != checks.KIND:
        raise StudioError("errors.missing", status=404, name=job_id)
    findings = None if job.active else checks.read_findings(studio.workspace, str(job.spec.about["check"]))
    log = "" if job.active or findings else job.tail()[0]
    changes = json.dumps(_texts(findings["memory"]["changes"])) if findings and _fitting(findings) else None
    return render(request, "train/verdict.html", job=job, found=findings, log=log[-2000:], changes=changes)


@router.post("/start")
async def start(request: Request) -> Response:
    studio, draft = studio_of(request), await _draft(request)
    if draft.problems:
        t = translator(request)
        raise StudioError(_sentence(t, next(iter(draft.problems.values()))), status=422)
    await run_in_threadpool(checks.stop_checks, draft.name, studio.jobs)
    await run_in_threadpool(runs.start_run, draft, studio.workspace, studio.jobs)
    return redirect(request, f"runs/{draft.name}")


async def _draft(request: Request) -> Draft:
    studio, lists = studio_of(request), await form_lists(request)
    form = {name: values[-1] for name, values in lists.items()}
    devices = await run_in_threadpool(_list, studio)
    return await run_in_threadpool(read_draft, form, lists.get("gpus", []), studio.workspace, devices)


def _chosen(filled: dict[str, str], versions: list[str], models: list[str]) -> dict[str, str]:
    """The fields with what is chosen where nothing is filled in; a model that is not listed is typed.

    Data that was asked for and has no rows is not chosen, and nothing takes its place.
    """
    data = filled.get("data", "")
    if data or not versions:
        first = next((key for key in versions if data in (key, key.rpartition("@")[0])), "")
    else:
        first = versions[0]
    chosen = {"data": first, "wanted": data, "goal": filled.get("goal", GOALS[0])}
    model = filled.get("model") or (models[0] if models else "")
    listed = {"model": model} if model in models else {"model": OTHER, "model_other": model}
    return filled | chosen | listed


def _list(studio: Studio) -> list[Device]:
    return _devices.list(studio.jobs.list())


def _now(studio: Studio, devices: list[Device]) -> dict[str, Any]:
    latest = {str(job.spec.about.get("run")): job for job in reversed(studio.jobs.list(runs.KIND))}
    jobs = sorted(latest.values(), key=lambda job: (not job.active, -job.queued_at))[:SHOWN_RUNS]
    shown = [(job, runs.peak_memory_gib(studio.workspace, str(job.spec.about["run"]))) for job in jobs]
    return {"devices": devices, "jobs": shown}


def _sentence(t: Any, problem: Problem) -> str:
    return problem.text or str(t(problem.key, **problem.values))


def _fitting(findings: dict[str, Any]) -> bool:
    """Whether `check` knows changes with which the run would fit."""
    return bool(findings.get("memory", {}).get("changes"))


def _texts(changes: dict[str, Any]) -> dict[str, str]:
    return {f"{ADVANCED}{key}": as_text(value) for key, value in changes.items()}
