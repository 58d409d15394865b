"""The rows of a dataset: pages of thumbnails, filters, one row, changes and versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from finetune.errors import FinetuneError
from studio.datasets.index import IndexedRow, Order, Show
from studio.datasets.records import picture_names, raw_of
from studio.datasets.store import BOX_FORMATS, Dataset, dataset_of
from studio.datasets.thumbnails import LARGE_SIDE, SIDE, make_thumbnail
from studio.datasets.versions import (
    current_index,
    discard_draft,
    edit,
    edit_texts,
    flag,
    leave_out,
    leave_out_twins,
    save_draft,
)
from studio.errors import StudioError
from studio.web.forms import form_fields, form_lists
from studio.web.links import redirect
from studio.web.pages.data.cards import bars_of, card_of, filter_of, pager_numbers, query_of
from studio.web.render import render, studio_of

router = APIRouter()
PAGE_SIZE = 24
MAX_RAW = 20_000  # characters of a record that are shown for editing
MARKS_OF = {
    "leave_out": (leave_out, True),
    "take_back": (leave_out, False),
    "flag": (flag, True),
    "unflag": (flag, False),
}
DECODERS = CapacityLimiter(2)  # pictures decoded at once: a large one takes hundreds of megabytes while it is


def show_dataset(request: Request, dataset: Dataset, message: str = "", query: str | None = None) -> Response:
    """A page of a dataset's rows. query: in place of the request's own."""
    given = parse_qs(request.url.query if query is None else query)
    wanted, number = filter_of(given)
    chosen = given.get("version", [""])[-1]
    version = int(chosen) if chosen.isdecimal() and len(chosen) < 10 else None
    index = current_index(dataset, version)
    page = index.page(wanted, number, PAGE_SIZE)
    about = dataset.about()
    cards = [card_of(request, row, page.pictures, about.get("box_format")) for row in page.rows]
    summary = index.summary()
    counts = summary.counts
    searches = studio_of(request).jobs.list("duplicates", dataset=dataset.name)
    return render(
        request,
        "data/rows.html",
        dataset=dataset,
        versions=dataset.versions(),
        newest=dataset.version(),
        version=version,
        draft=dataset.draft_path.exists() and version is None and counts["changed"] > 0,
        page=page,
        pages=pager_numbers(page),
        cards=cards,
        wanted=wanted,
        query=query_of(wanted, page.number, version),
        query_for=lambda number: query_of(wanted, number, version),
        shows=[name for name in get_args(Show) if name in ("all", wanted.show) or counts[name]],
        orders=get_args(Order),
        counts=counts,
        sources=summary.sources,
        bars=bars_of(summary.lengths),
        splits=[name.removeprefix("split:") for name in counts if name.startswith("split:")],
        box_format=about.get("box_format") or "",
        box_formats=BOX_FORMATS,
        has_boxes=any(card.boxes or card.points for card in cards),
        asked=dataset.wanted().get("question") or "",
        searching=any(job.active for job in searches),
        searched=bool(searches),
        message=message,
    )


def _row(dataset: Dataset, number: int, version: int | None) -> tuple[IndexedRow, dict[str, tuple[int, int]]]:
    index = current_index(dataset, version)
    row = index.get(number)
    if row is None:
        raise StudioError("data.error_no_row", status=404, number=number)
    return row, index.sizes(row)


@router.get("/data/{name}/rows/{number}")
def show_row(request: Request, name: str, number: int, version: int | None = None) -> Response:
    """One row, large. The filter in the query says which row is the next."""
    dataset = dataset_of(studio_of(request).workspace, name)
    row, sizes = _row(dataset, number, version)
    about = dataset.about()
    wanted, page = filter_of(parse_qs(request.url.query))
    kept = raw_of(row.record)
    raw = ""
    if kept is not None:
        raw = kept["raw"] if isinstance(kept["raw"], str) else json.dumps(kept["raw"], ensure_ascii=False, indent=1)
    before, after = current_index(dataset, version).neighbours(wanted, row)
    return render(
        request,
        "data/row.html",
        dataset=dataset,
        card=card_of(request, row, sizes, about.get("box_format")),
        texts=[(turn["role"], turn["content"]) for turn in row.record["messages"]] if not raw else [],
        raw=raw[:MAX_RAW],
        version=version,
        query=query_of(wanted, page, version),
        before=before,
        after=after,
        model=about.get("model", ""),
        models=data_models(request),
    )


def data_models(request: Request) -> list[str]:
    """Model folders that the page offers: those of the workspace."""
    workspace = studio_of(request).workspace
    return [str(workspace.folder / "models" / name) for name in workspace.names("models")]


@router.post("/data/{name}/rows/{number}")
async def change_row(request: Request, name: str, number: int) -> Response:
    """Save the texts of a row's turns, or the record that was written in place of one that cannot be read."""
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_lists(request)
    query = fields.get("query", [""])[-1]
    if "raw" in fields:
        try:
            record = json.loads(fields["raw"][-1])
        except (ValueError, RecursionError) as error:
            raise StudioError("data.error_not_json", reason=str(error)) from None
        row = await run_in_threadpool(edit, dataset, number, record)
    else:
        texts = [text.replace("\r\n", "\n") for text in fields.get("text", [])]
        row = await run_in_threadpool(edit_texts, dataset, number, texts)
    if row.problem is not None:
        return redirect(request, f"data/{name}/rows/{number}", **_flat(query))
    after = fields.get("after", [""])[-1]
    if "next" in fields and after.isdecimal():
        return redirect(request, f"data/{name}/rows/{after}", **_flat(query))
    return redirect(request, f"data/{name}", **_flat(query))


def _flat(query: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(query).items()}


@router.post("/data/{name}/marks")
async def mark(request: Request, name: str) -> Response:
    """Leave out, take back, flag or unflag the rows that were ticked, or the one whose button was pressed."""
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_lists(request)
    action, _, one = fields.get("action", [""])[-1].partition(":")
    numbers = [
        int(text) for text in ([one] if one else fields.get("number", [])) if text.isdecimal() and len(text) < 10
    ]
    if action not in MARKS_OF:
        raise StudioError("errors.parameters", name="action")
    if not numbers:
        raise StudioError("data.error_none_chosen")
    change, value = MARKS_OF[action]
    await run_in_threadpool(change, dataset, numbers, value)
    query = fields.get("query", [""])[-1]
    return await run_in_threadpool(show_dataset, request, dataset, "", query)


@router.post("/data/{name}/save")
async def save(request: Request, name: str) -> Response:
    """Make the changes the next version."""
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_fields(request)
    await run_in_threadpool(save_draft, dataset, fields.get("note", ""))
    return redirect(request, f"data/{name}")


@router.post("/data/{name}/discard")
def discard(request: Request, name: str) -> Response:
    discard_draft(dataset_of(studio_of(request).workspace, name))
    return redirect(request, f"data/{name}")


@router.post("/data/{name}/duplicates")
def find_duplicates(request: Request, name: str) -> Response:
    dataset_of(studio_of(request).workspace, name).start_duplicates(studio_of(request).jobs)
    return redirect(request, f"data/{name}")


@router.get("/data/{name}/twins")
def watch_search(request: Request, name: str) -> Response:
    """Asked by the page again and again while the search runs; at its end the page loads anew."""
    active = any(job.active for job in studio_of(request).jobs.list("duplicates", dataset=name))
    return Response(status_code=204, headers={} if active else {"hx-refresh": "true"})


@router.post("/data/{name}/twins")
def leave_twins_out(request: Request, name: str) -> Response:
    leave_out_twins(dataset_of(studio_of(request).workspace, name))
    return redirect(request, f"data/{name}", show="left_out")


@router.post("/data/{name}/settings")
async def settings(request: Request, name: str) -> Response:
    """Say what the numbers of the boxes in the texts are."""
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_fields(request)
    box_format = fields.get("box_format", "")
    if box_format not in ("", *BOX_FORMATS):
        raise StudioError("errors.parameters", name="box_format")
    dataset.set_about(box_format=box_format or None)
    return redirect(request, f"data/{name}", **_flat(fields.get("query", "")))


@router.get("/data/{name}/pictures/{number}/{position}")
async def picture(
    request: Request, name: str, number: int, position: int, large: bool = False, version: int | None = None
) -> Response:
    """A picture of a row, made anew by us: never a file as it came."""
    dataset = dataset_of(studio_of(request).workspace, name)

    def load() -> bytes:
        row = current_index(dataset, version).get(number)
        names = picture_names(row.record) if row else []
        if not 0 <= position < len(names):
            raise StudioError("data.error_no_row", status=404, number=number)
        path = Path(os.path.normpath(dataset.version(version).folder / names[position]))
        try:
            return make_thumbnail(path, dataset.thumbnails, LARGE_SIDE if large else SIDE)
        except (FinetuneError, OSError):
            raise StudioError("data.error_picture", status=404) from None

    data = await to_thread.run_sync(load, limiter=DECODERS)
    return Response(data, media_type="image/webp", headers={"cache-control": "private, max-age=300"})
