"""The page Evaluate: how good base and runs are on a dataset's split, and the pictures behind the scores."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from finetune.errors import FinetuneError
from finetune.media.image_files import decode
from studio.datasets.store import Dataset, dataset_of
from studio.datasets.versions import correct_answer, flag, leave_out, row_at
from studio.errors import StudioError
from studio.evaluation import plan as planning
from studio.evaluation.annotations import VERDICTS, Annotation, annotate, check_annotation, read_annotations
from studio.evaluation.plan import BASE, RUN, Evaluation
from studio.evaluation.results import METRICS, read_results
from studio.evaluation.wall import CHANGES, answered, wall
from studio.jobs.devices import Devices
from studio.jobs.job import Job
from studio.web.forms import form_fields, form_lists
from studio.web.links import redirect
from studio.web.render import Studio, render, studio_of
from studio.workspace.names import MAX_NAME
from studio.workspace.versions import find_version, list_versions

router = APIRouter(prefix="/evaluate")
_devices = Devices()
THUMBNAIL = (320, 320)  # pixels


@router.get("")
def index(request: Request, run: str = "", data: str = "") -> Response:
    """run, data: what is chosen at first, for links from other pages."""
    studio = studio_of(request)
    versions, runs = list_versions(studio.workspace), planning.evaluated_runs(studio.workspace)
    return render(
        request,
        "evaluate/index.html",
        versions=versions,
        chosen=data,
        runs=runs,
        chosen_run=run or next(iter(runs), ""),
        name=studio.workspace.free_name("evaluations", f"{run or next(iter(runs), 'evaluation')}"[:MAX_NAME]),
        tokens=planning.MAX_NEW_TOKENS,
        engines=planning.installed_engines(),
        evaluations=[(name, _job(studio, name)) for name in studio.workspace.names("evaluations")],
    )


@router.post("")
async def start(request: Request) -> Response:
    studio, lists = studio_of(request), await form_lists(request)
    fields = {name: values[-1] for name, values in lists.items()}
    await run_in_threadpool(_start, studio, fields, lists.get("runs", []))
    return redirect(request, f"evaluate/{fields['name'].strip()}")


@router.get("/{name}")
def show(request: Request, name: str, side: str = "", change: str = "", page: int = 1) -> Response:
    """side: whose answers stand beside the base's; change: which rows; page: of the wall."""
    studio = studio_of(request)
    plan = planning.read_plan(studio.workspace, name)
    if change not in ("", *CHANGES):
        raise StudioError("errors.parameters", name="change")
    side = side if side in plan.sides[1:] else plan.sides[1]
    folder, job = studio.workspace.existing("evaluations", name), _job(studio, name)
    results = read_results(folder)
    known = read_annotations(studio.workspace.path("datasets", plan.dataset))
    marks = {
        row: mark for (version, split, row), mark in known.items() if (version, split) == (plan.version, plan.split)
    }
    return render(
        request,
        "evaluate/show.html",
        plan=plan,
        job=job,
        log=job.tail()[0][-1500:] if job and job.state in ("failed", "lost") else "",
        results=results,
        metrics=METRICS,
        side=side,
        change=change,
        changes=CHANGES,
        verdicts=VERDICTS,
        wall=wall(folder, BASE, side, change, page) if results else None,
        marks=marks,
        run_prefix=RUN,
    )


@router.get("/{name}/progress")
def progress(request: Request, name: str) -> Response:
    """How far the job is; once it is over, the whole page comes anew."""
    studio = studio_of(request)
    job = _job(studio, name)
    if job is None or not job.active:
        return Response(status_code=204, headers={"hx-refresh": "true"})
    plan = planning.read_plan(studio.workspace, name)
    return render(request, "evaluate/progress.html", plan=plan, job=job, done=_done(studio, plan))


@router.get("/{name}/images/{row}/{number}")
def image(request: Request, name: str, row: int, number: int) -> Response:
    """A picture of a row, made small and written anew: nothing of the file itself is sent."""
    studio = studio_of(request)
    plan = planning.read_plan(studio.workspace, name)
    found = _row(studio, plan, plan.sides[1], row)
    try:
        picture = decode(studio.workspace.folder / found.images[number])
    except (IndexError, FinetuneError):
        raise StudioError("evaluate.no_picture", status=404) from None
    picture.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    headers = {"cache-control": "private, max-age=3600"}
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=headers)


@router.post("/{name}/rows/{row}")
async def mark(request: Request, name: str, row: int) -> Response:
    """Keeps what somebody says about a row, and changes the draft of its dataset, which the page Data shows."""
    studio, fields = studio_of(request), await form_fields(request)
    return await run_in_threadpool(_mark, request, studio, name, row, fields)


@router.post("/{name}/stop")
def stop(request: Request, name: str) -> Response:
    studio = studio_of(request)
    job = _job(studio, name)
    if job is not None:
        studio.jobs.stop(job.id)
    return redirect(request, f"evaluate/{name}")


@router.post("/{name}/resume")
def resume(request: Request, name: str) -> Response:
    studio = studio_of(request)
    planning.submit(name, studio.workspace, studio.jobs, _free_device(studio))
    return redirect(request, f"evaluate/{name}")


def _start(studio: Studio, fields: dict[str, str], runs: list[str]) -> None:
    version = find_version(studio.workspace, fields.get("data", "").partition("/")[0])
    plan = planning.plan_evaluation(
        studio.workspace,
        fields.get("name", ""),
        version,
        fields.get("data", "").partition("/")[2],
        runs,
        fields.get("samples", ""),
        fields.get("tokens", ""),
        fields.get("engine", ""),
    )
    planning.start_evaluation(plan, studio.workspace, studio.jobs, _free_device(studio))


def _free_device(studio: Studio) -> tuple[int, ...]:
    devices = _devices.list(studio.jobs.list())
    return (max(devices, key=lambda device: (device.job is None, device.free_gib)).index,)


def _job(studio: Studio, name: str) -> Job | None:
    return next(iter(studio.jobs.list(planning.KIND, evaluation=name)), None)


def _done(studio: Studio, plan: Evaluation) -> dict[str, int]:
    """Answers that are there by side."""
    folder = studio.workspace.path("evaluations", plan.name)
    counts = {}
    for side in plan.sides:
        finished = folder / side / "generated_predictions.jsonl"
        growing = folder / side / ".generated_predictions.jsonl.partial"  # its first line says whose it is
        path: Path = finished if finished.exists() else growing
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        counts[side] = max(0, lines - (path == growing))
    return counts


def _change_data(dataset: Dataset, made: Annotation, undo: bool = False) -> None:
    """Changes the draft of the dataset as the annotation says, or changes it back. Raises StudioError."""
    place = (dataset, made.version, made.split, made.row + 1)
    if made.verdict == "wrong_answer":
        correct_answer(*place, made.label if undo else made.answer)
    elif made.verdict == "bad_row":
        leave_out(dataset, [row_at(*place)], not undo)
    elif made.verdict == "hard":
        flag(dataset, [row_at(*place)], not undo)


def _row(studio: Studio, plan: Evaluation, side: str, number: int) -> Any:
    folder = studio.workspace.path("evaluations", plan.name)
    for row in answered(folder, BASE, side):
        if row.index == number:
            return row
    raise StudioError("errors.missing", status=404, name=number)


def _mark(request: Request, studio: Studio, name: str, number: int, fields: dict[str, str]) -> Response:
    plan = planning.read_plan(studio.workspace, name)
    side = fields.get("side", "")
    row = _row(studio, plan, side if side in plan.sides[1:] else plan.sides[1], number)
    made = Annotation(
        version=plan.version,
        split=plan.split,
        row=row.index,
        verdict=fields.get("verdict", ""),  # type: ignore[arg-type]  # checked by annotate
        answer=fields.get("answer", ""),
        note=fields.get("note", ""),
        prompt=row.prompt,
        label=row.label,
        predict=row.tuned,
        evaluation=plan.name,
        at=time.time(),
    )
    dataset = dataset_of(studio.workspace, plan.dataset)
    check_annotation(made)
    earlier = read_annotations(dataset.folder).get((made.version, made.split, made.row))
    if earlier is not None:
        _change_data(dataset, earlier, undo=True)
    _change_data(dataset, made)
    annotate(dataset.folder, made)
    shown = None if made.verdict == "none" else made
    return render(request, "evaluate/mark.html", plan=plan, row=row, mark=shown, side=side, verdicts=VERDICTS)
