"""The page Runs: all runs, one run live, several beside each other."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from modelfiles.folder.atomic_write import write_atomically
from studio.errors import StudioError
from studio.runs.compare import figures, recipe_differences
from studio.runs.ending import ending_of
from studio.runs.resume import can_resume, resume
from studio.runs.run import NOTES, Run, find_run, list_runs
from studio.runs.samples import sample_image, sample_rows
from studio.web.forms import form_fields
from studio.web.links import redirect
from studio.web.render import render, studio_of
from studio.web.sse import follow_file

router = APIRouter()
MAX_COMPARED = 6  # runs in one picture: there are as many colours
QUIET_SECONDS = 300.0  # without a sign of life, after which the page says so


def _run(request: Request, name: str) -> Run:
    studio = studio_of(request)
    return find_run(studio.workspace, studio.jobs, name)


@router.get("/runs")
def index(request: Request) -> Response:
    studio = studio_of(request)
    runs = list_runs(studio.workspace, studio.jobs)
    template = "runs/rows.html" if "hx-request" in request.headers else "runs/index.html"
    return render(request, template, runs=runs, most=MAX_COMPARED)


@router.get("/runs/compare")
def compare(request: Request, run: Annotated[list[str] | None, Query()] = None) -> Response:
    if not run or len(run) > MAX_COMPARED:
        raise StudioError("runs.compare_count", most=MAX_COMPARED)
    runs = [_run(request, name) for name in dict.fromkeys(run)]
    differences = recipe_differences(runs)
    return render(request, "runs/compare.html", runs=runs, differences=differences, figures=[*map(figures, runs)])


@router.get("/runs/{name}")
def show(request: Request, name: str) -> Response:
    return render(request, "runs/run.html", **_live(request, name))


@router.get("/runs/{name}/live")
def live(request: Request, name: str) -> Response:
    """The part of the page that changes, for htmx."""
    return render(request, "runs/live.html", **_live(request, name))


def _live(request: Request, name: str) -> dict[str, Any]:
    run = _run(request, name)
    steps, samples = sample_rows(run)
    quiet = run.job.silent_seconds if run.job is not None and run.job.state == "running" else 0.0
    return {
        "run": run,
        "ending": ending_of(run),
        "resume": can_resume(run),
        "figures": figures(run),
        "sample_steps": steps,
        "samples": samples,
        "quiet": quiet if quiet > QUIET_SECONDS else None,
    }


@router.get("/runs/{name}/records")
def records(request: Request, name: str, offset: int = 0) -> Response:
    """The lines of trainer_log.jsonl as events, from the byte `offset` on."""
    run = _run(request, name)
    return follow_file(request, run.log_path, lambda: not _run(request, name).active, offset)


@router.get("/runs/{name}/log")
def log(request: Request, name: str, offset: int = 0) -> Response:
    """What the run's latest job prints as events."""
    job = _run(request, name).job
    if job is None:
        raise StudioError("errors.missing", status=404, name=name)
    jobs, path, job_id = studio_of(request).jobs, job.log_path, job.id
    return follow_file(request, path, lambda: not jobs.get(job_id).active, offset)


@router.get("/runs/{name}/output.log")
def whole_log(request: Request, name: str) -> Response:
    job = _run(request, name).job
    if job is None or not job.log_path.is_file():
        raise StudioError("errors.missing", status=404, name=name)
    return FileResponse(job.log_path, media_type="text/plain; charset=utf-8")


@router.get("/runs/{name}/samples/{sample}/{image}")
def picture(request: Request, name: str, sample: int, image: int) -> Response:
    from studio.web.pictures import small_jpeg  # Pillow is loaded when there is something to show

    return Response(
        small_jpeg(sample_image(_run(request, name), sample, image)),
        media_type="image/jpeg",
        headers={"cache-control": "private, max-age=3600"},
    )


@router.post("/runs/{name}/stop")
def stop(request: Request, name: str) -> Response:
    run = _run(request, name)
    if run.job is not None:
        studio_of(request).jobs.stop(run.job.id)
    return redirect(request, f"runs/{run.name}")


@router.post("/runs/{name}/resume")
def go_on(request: Request, name: str) -> Response:
    run = _run(request, name)
    resume(run, studio_of(request).jobs)
    return redirect(request, f"runs/{run.name}")


@router.put("/runs/{name}/notes")
async def keep_notes(request: Request, name: str) -> Response:
    run = _run(request, name)
    text = (await form_fields(request)).get("notes", "").replace("\r\n", "\n")
    try:
        write_atomically(run.folder / NOTES, text.encode())
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=run.folder / NOTES, reason=error.strerror) from None
    return render(request, "runs/saved.html")
