"""Starts a run as it is planned, once however often it is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from modelfiles.folder.atomic_write import write_atomically
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from studio.training.draft import Draft
from studio.workspace.folder import Workspace

KIND = "train"
GRACE = 120.0  # seconds in which a run that is stopped ends its step and saves


def start_run(draft: Draft, workspace: Workspace, jobs: Jobs) -> Job:
    """Writes the run's recipe and queues its training. Raises StudioError.

    Of two tabs that start a run of the same name at once, the making of the folder lets one through.
    """
    if draft.problems or draft.version is None:
        raise StudioError("train.mend_first", status=422)
    folder = workspace.create("runs", draft.name)
    about = {
        "run": draft.name,
        "dataset": draft.version.name,
        "version": draft.version.number,
        "model": draft.recipe["model_name_or_path"],
    }
    try:
        write_atomically(folder / "recipe.yaml", draft.yaml.encode())
        return jobs.submit(
            JobSpec(
                kind=KIND,
                title=draft.name,
                command=draft.command,
                cwd=workspace.folder,
                gpus=draft.gpus,
                about=about,
                exclusive=f"run/{draft.name}",
                grace=GRACE,
            )
        )
    except OSError as error:
        _forget(folder)
        raise StudioError("errors.disk", status=507, path=folder, reason=error.strerror) from None
    except StudioError:
        _forget(folder)
        raise


def _forget(folder: Path) -> None:
    """A run that was not queued leaves no folder behind, which would keep its name."""
    shutil.rmtree(folder, ignore_errors=True)


def peak_memory_gib(workspace: Workspace, name: str) -> float | None:
    """The GPU memory that a finished run took at most; None on a processor, or before its end."""
    try:
        found = json.loads((workspace.path("runs", name) / "output" / "train_results.json").read_bytes())
    except (OSError, ValueError):
        return None
    peak = found.get("peak_memory_gib") if isinstance(found, dict) else None
    return float(peak) if isinstance(peak, int | float) else None
