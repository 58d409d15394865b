"""What the model sees of a row: the picture as it gets it, its tokens, and which of them are learnt."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from studio.datasets.model_view import ModelViewer
from studio.datasets.store import dataset_of
from studio.datasets.versions import current_index
from studio.errors import StudioError
from studio.web.forms import form_fields
from studio.web.render import render, studio_of

router = APIRouter()


def _viewer(request: Request) -> ModelViewer:
    """The application's one viewer; its process starts when it is asked first and goes when it is not asked."""
    state = request.app.state
    if not hasattr(state, "model_viewer"):
        state.model_viewer = ModelViewer()
    viewer: ModelViewer = state.model_viewer
    return viewer


@router.post("/data/{name}/rows/{number}/model")
async def show(request: Request, name: str, number: int, version: int | None = None) -> Response:
    dataset = dataset_of(studio_of(request).workspace, name)
    fields = await form_fields(request)
    model = fields.get("model", "").strip()
    if not model:
        raise StudioError("data.error_no_model")
    row = current_index(dataset, version).get(number)
    if row is None:
        raise StudioError("data.error_no_row", status=404, number=number)
    about = dataset.about()
    wanted = {
        "model": model,
        "record": row.record,
        "place": row.place,
        "folder": str(dataset.version(version).folder),
        "box_format": about.get("box_format"),
    }
    seen = await run_in_threadpool(_viewer(request).ask, wanted)
    if about.get("model") != model:
        dataset.set_about(model=model)
    return render(request, "data/model_view.html", seen=seen)
