"""A user's own modules in the workspace are none of the jobs' business."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.jobs.devices import Devices
from studio.jobs.job import Job
from studio.training.draft import read_draft
from studio.web.render import Studio
from studio.workspace.versions import find_version
from tests.support.gateway.processes import until
from tests.support.paths import ROOT, SHAPES_VL
from tests.support.studio.data import shape_files
from tests.support.studio.datasets import imported

TRAP = "raise SystemExit('a module of the user was imported')\n"


def set_traps(folder: Path) -> None:
    """Modules with names of ours, of our libraries, and of Python's own that a spawned process imports first."""
    for name in ("lensmith", "finetune", "torch", "click", "random", "tempfile"):
        (folder / f"{name}.py").write_text(TRAP)
    for name in ("gateway", "studio", "modelfiles"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(TRAP)


def ended(studio: Studio, kind: str) -> Job:
    job = studio.jobs.list(kind)[0]
    until("the job is over", lambda: not studio.jobs.get(job.id).active)
    return studio.jobs.get(job.id)


@pytest.fixture
def trapped(client: TestClient, studio: Studio) -> dict[str, str]:
    """The form of a run, in a workspace with such modules wherever a job runs."""
    set_traps(studio.workspace.folder)
    imported(client, shape_files(), "shapes")
    set_traps(find_version(studio.workspace, "shapes@1").folder)
    form = {"data": "shapes@1", "model": str(SHAPES_VL), "goal": "quick", "name": "first", "key.max_steps": "1"}
    return form | {"key.preprocessing_num_workers": "2"}


def test_the_whole_way_goes_past_them(client: TestClient, studio: Studio, trapped: dict[str, str]) -> None:
    assert client.post("/data/shapes/rows/1/model", data={"model": str(SHAPES_VL)}).status_code == 200
    client.post("/train/check", data=trapped)
    assert (job := ended(studio, "check")).state == "done", job.tail()[0]
    client.post("/train/start", data=trapped)
    assert (job := ended(studio, "train")).state == "done", job.tail()[0]
    chosen = {"name": "first", "data": "shapes@1/validation", "runs": ["first"], "samples": "2", "tokens": "4"}
    assert client.post("/evaluate", data=chosen, follow_redirects=False).status_code == 303
    assert (job := ended(studio, "evaluate")).state == "done", job.tail()[0]


@pytest.mark.usefixtures("two_gpus")
def test_several_gpus_go_past_them(studio: Studio, trapped: dict[str, str]) -> None:
    draft = read_draft(trapped, ["0", "1"], studio.workspace, Devices().list())
    assert len(draft.gpus) == 2
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(draft.command, cwd=studio.workspace.folder, env=environment, capture_output=True, text=True)
    assert "runs/first/recipe.yaml" in told.stderr, "the program itself says that there is none"
    assert "a module of the user" not in told.stdout + told.stderr
