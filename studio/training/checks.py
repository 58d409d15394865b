"""`lensmith check` of a planned run, as a job whose findings a page reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from modelfiles.folder.atomic_write import write_atomically
from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from studio.training.draft import Draft
from studio.workspace.folder import Workspace
from studio.workspace.models import TINY

KIND = "check"
FOLDER = ".checks"
FINDINGS = "findings.json"
KEPT = 20  # checks whose findings stay, for pages that are still open


def start_check(draft: Draft, workspace: Workspace, jobs: Jobs, measure: bool = False) -> Job:
    """The check of this draft: the one that runs or has run already, or a new one. Raises StudioError.

    measure: also train a few steps, on the draft's devices, to tell the time and the peak memory. The demo's model is
    always measured where there is no GPU, as that takes a moment.
    """
    tiny = 0 < draft.parameters < TINY
    measure = measure or (tiny and draft.card is None and not draft.busy)
    digest = f"{draft.digest}-measured" if measure else draft.digest
    known = next(iter(jobs.list(KIND, check=digest)), None)
    if known is not None and (known.active or known.state == "done" or read_findings(workspace, digest) is not None):
        return known
    stop_checks(draft.name, jobs)
    _forget_old(workspace, jobs)
    folder = workspace.folder / FOLDER / digest
    command = [*module_command("lensmith"), "check", str(folder / "recipe.yaml"), "--json", str(folder / FINDINGS)]
    command += ["--measure" if measure else "--no-measure"]
    if draft.card is not None:
        command += ["--gpu", draft.card]
    if draft.price is not None:
        command += ["--price", f"{draft.price:g}"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "recipe.yaml", draft.yaml.encode(), durable=False)
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=folder, reason=error.strerror) from None
    return jobs.submit(
        JobSpec(
            kind=KIND,
            title=draft.name,
            command=command,
            cwd=workspace.folder,
            gpus=draft.gpus if measure else (),
            env={} if measure else {"CUDA_VISIBLE_DEVICES": ""},
            about={"check": digest, "run": draft.name},
            grace=2.0,
        )
    )


def stop_checks(run: str, jobs: Jobs) -> None:
    """Ends what is still being checked for a run: nobody waits for it any more, and nothing shall wait behind it."""
    for job in jobs.list(KIND, run=run):
        if job.active:
            jobs.stop(job.id)


def _forget_old(workspace: Workspace, jobs: Jobs) -> None:
    """Removes old checks and their jobs; each is one of a recipe that somebody tried on the way to another."""
    for job in jobs.list(KIND)[KEPT - 1 :]:
        if not job.active:
            shutil.rmtree(workspace.folder / FOLDER / str(job.spec.about["check"]), ignore_errors=True)
            shutil.rmtree(job.folder, ignore_errors=True)


def read_findings(workspace: Workspace, digest: str) -> dict[str, Any] | None:
    """What `check` found (see finetune.preflight.report.Report.write_json); None while it is not there."""
    path: Path = workspace.folder / FOLDER / digest / FINDINGS
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found
