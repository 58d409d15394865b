"""The page Data: datasets, how they come in, and how far an import is."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studio.datasets.columns import USES, check_mapping
from studio.datasets.store import Dataset, Version, create_dataset, dataset_of, datasets_of
from studio.datasets.uploads import receive
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.web.forms import form_fields
from studio.web.links import redirect
from studio.web.pages.data import model_view, rows
from studio.web.pages.data.rows import show_dataset
from studio.web.render import message_of, render, studio_of

router = APIRouter()
STRIP = 5  # thumbnails on a dataset's card
SOURCES = ("files", "path", "hub")


@dataclass(frozen=True)
class Summary:
    """A dataset on the list."""

    dataset: Dataset
    version: Version | None
    job: Job | None
    failed: bool
    asks: bool
    strip: list[int]


def _summary(request: Request, dataset: Dataset) -> Summary:
    version = next(iter(dataset.versions()), None)
    state = dataset.outcome().get("state")
    strip = version.index.with_pictures(STRIP) if version else []
    return Summary(dataset, version, _import_job(request, dataset), state == "failed", state == "columns", strip)


def _import_job(request: Request, dataset: Dataset) -> Job | None:
    """The import that is running, if one is."""
    jobs = studio_of(request).jobs.list("import", dataset=dataset.name)
    return next((job for job in jobs if job.active), None)


@router.get("/data")
def index(request: Request) -> Response:
    found = [_summary(request, dataset) for dataset in datasets_of(studio_of(request).workspace)]
    return render(request, "data/index.html", datasets=found)


@router.post("/data")
async def create(request: Request) -> Response:
    """A new dataset: without rows if files follow (JSON for the script), else imported from a path or a hub."""
    fields = await form_fields(request)
    workspace = studio_of(request).workspace
    source, value = fields.get("source", "files"), fields.get("value", "").strip()
    if source not in SOURCES:
        raise StudioError("errors.parameters", name="source")
    if source != "files" and not value:
        raise StudioError("data.error_no_value")
    wanted = fields.get("name", "").strip() or _name_from(value)
    dataset = await run_in_threadpool(lambda: create_dataset(workspace, workspace.free_name("datasets", wanted)))
    if source == "files":
        return JSONResponse({"name": dataset.name}, status_code=201)
    await run_in_threadpool(dataset.start_import, studio_of(request).jobs, {"source": source, "value": value})
    return redirect(request, f"data/{dataset.name}")


def _name_from(text: str) -> str:
    """A dataset's name from a path, a hub's id or a file's name."""
    stem = text.rstrip("/").replace("\\", "/").rpartition("/")[2].partition(".")[0]
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem).strip("_-")
    return name[:48] or "dataset"


@router.put("/data/{name}/files/{path:path}")
async def upload(request: Request, name: str, path: str) -> Response:
    dataset = dataset_of(studio_of(request).workspace, name)
    given = request.headers.get("content-length", "")
    await receive(dataset.files, path, request.stream(), int(given) if given.isdecimal() else None)
    return Response(status_code=204)


@router.post("/data/{name}/import")
async def start_import(request: Request, name: str) -> Response:
    """Read the rows, again if there are some: as before, or with columns and a question that were given."""
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_fields(request)
    wanted = dataset.wanted()
    if fields.get("columns") == "ask":
        wanted["columns"] = "ask"
    elif mapping := {use: fields[use] for use in USES if use in fields}:
        wanted["columns"] = check_mapping(mapping)
    if "ask_for" in fields:
        wanted["question"] = fields["ask_for"].strip()[:2000]
    await run_in_threadpool(dataset.start_import, studio_of(request).jobs, wanted)
    return redirect(request, f"data/{name}")


@router.get("/data/{name}")
def show(request: Request, name: str) -> Response:
    dataset = dataset_of(studio_of(request).workspace, name)
    job = _import_job(request, dataset)
    outcome = {} if job else dataset.outcome()
    if job is None and outcome.get("state") == "done" and dataset.versions():
        return show_dataset(request, dataset)
    message = ""
    if outcome.get("state") == "failed":
        message = message_of(request, StudioError(outcome["message"], **outcome["values"]))
    elif job is None and not outcome:
        message = _lost(request, dataset)
    if message and dataset.versions():
        return show_dataset(request, dataset, message)
    asks = outcome if outcome.get("state") == "columns" else None
    return render(
        request,
        "data/import.html",
        dataset=dataset,
        job=job,
        progress=_progress(job) if job else None,
        asks=asks,
        message=message,
        uses=USES,
        wanted=dataset.wanted(),
    )


def _lost(request: Request, dataset: Dataset) -> str:
    """What to say of an import that left no word."""
    jobs = studio_of(request).jobs.list("import", dataset=dataset.name)
    return message_of(request, StudioError("data.error_import_ended", state=jobs[0].state)) if jobs else ""


@router.get("/data/{name}/progress")
def progress(request: Request, name: str) -> Response:
    """How far the import is, asked for by the page again and again; at its end the page loads anew."""
    dataset = dataset_of(studio_of(request).workspace, name)
    job = _import_job(request, dataset)
    if job is None:
        return Response(status_code=204, headers={"hx-refresh": "true"})
    return render(request, "data/progress.html", dataset=dataset, job=job, progress=_progress(job))


def _progress(job: Job) -> dict[str, object]:
    """The last event of a job."""
    try:
        with job.events_path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().splitlines()
        return dict(json.loads(lines[-1]))
    except (FileNotFoundError, IndexError, ValueError):
        return {"stage": "start", "done": None, "total": None}


@router.post("/data/{name}/stop")
def stop(request: Request, name: str) -> Response:
    studio = studio_of(request)
    for job in studio.jobs.list(dataset=name):
        if job.active:
            studio.jobs.stop(job.id)
    return redirect(request, f"data/{name}")


@router.post("/data/{name}/remove")
async def remove(request: Request, name: str) -> Response:
    """Delete a dataset with all its versions. Raises StudioError if the name was not typed, or a job works on it."""
    studio = studio_of(request)
    dataset = dataset_of(studio.workspace, name)
    fields = await form_fields(request)
    if fields.get("confirm", "").strip() != name:
        raise StudioError("data.error_confirm", name=name)
    if any(job.active for job in studio.jobs.list(dataset=name)):
        raise StudioError("errors.already_running", status=409, title=name)
    gone = dataset.folder.with_name(f".{name}.removed")
    dataset.folder.rename(gone)
    await run_in_threadpool(shutil.rmtree, gone, ignore_errors=True)
    return redirect(request, "data")


router.include_router(rows.router)
router.include_router(model_view.router)
