"""Whether a run can go on, from where, and the job that does it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from modelfiles.folder.safetensors_header import HeaderError, read_header
from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import CPU, JobSpec
from studio.jobs.store import Jobs
from studio.runs.run import KIND, RECIPE, Run

OPTION = "resume_from_checkpoint="
STATE = "state.pt"  # in a checkpoint: optimizer, random numbers, position (finetune/training/checkpoint.py)
GRACE = 180.0  # seconds that a run has to save when it is stopped


@dataclass(frozen=True)
class Resume:
    """checkpoint: the newest whole one; None with the reason, a key of the texts runs.no_resume_REASON."""

    checkpoint: Path | None
    reason: str = ""

    @property
    def step(self) -> int:
        return _step(self.checkpoint) if self.checkpoint else 0


def can_resume(run: Run) -> Resume:
    """Whether the run can go on. What is inside the checkpoint is checked again by the training itself."""
    if run.active:
        return Resume(None, "active")
    if run.state == "done":
        return Resume(None, "done")
    if not (run.folder / RECIPE).is_file():
        return Resume(None, "no_recipe")
    found = [path for path in run.output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    if not found:
        return Resume(None, "no_checkpoint")
    whole = [path for path in sorted(found, key=_step, reverse=True) if _is_whole(path)]
    return Resume(whole[0]) if whole else Resume(None, "broken")


def resume(run: Run, jobs: Jobs) -> Job:
    """Queue the job that goes on. Raises StudioError if it cannot."""
    state = can_resume(run)
    if state.checkpoint is None:
        raise StudioError(f"runs.no_resume_{state.reason}", status=409)
    if run.job is not None:
        spec = run.job.spec
        command = [part for part in spec.command if not part.startswith(OPTION)]
    else:
        command = [*module_command("lensmith"), "train", str(run.folder / RECIPE)]
        spec = JobSpec(KIND, run.name, command, run.folder, (CPU,), about={"run": run.name}, grace=GRACE)
    return jobs.submit(replace(spec, command=[*command, f"{OPTION}{state.checkpoint}"], exclusive=f"run/{run.name}"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    """Whether its state and its weights have the length that they claim."""
    try:
        with zipfile.ZipFile(checkpoint / STATE):
            pass  # the index is at the end: a file that was cut has none
        weights = list(checkpoint.glob("*.safetensors"))
        for path in weights:
            read_header(path)
    except (OSError, zipfile.BadZipFile, HeaderError):
        return False
    return bool(weights)
