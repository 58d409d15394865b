"""One training run as its folder shows it: recipe, log, results, and the job that makes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from studio.jobs.job import Job, State
from studio.jobs.store import Jobs
from studio.runs.log_summary import LogSummary, seconds, summarise
from studio.workspace.folder import Workspace

KIND = "train"  # of the jobs of a run; their `about` is {"run": name}
RECIPE, OUTPUT, NOTES = "recipe.yaml", "output", "notes.md"
LOG, RESULTS = "trainer_log.jsonl", "train_results.json"


@dataclass(frozen=True)
class Run:
    """A folder of the workspace's `runs`. job: the latest one that trained it; None for a folder brought along."""

    name: str
    folder: Path
    job: Job | None

    @property
    def workspace(self) -> Path:
        """The workspace's folder, in which its job runs."""
        return self.folder.parent.parent

    @property
    def output(self) -> Path:
        return self.folder / OUTPUT

    @property
    def log_path(self) -> Path:
        return self.output / LOG

    @property
    def state(self) -> State:
        """The job's; of a folder without a job: "done" with results, else "stopped"."""
        if self.job is not None:
            return self.job.state
        return "done" if (self.output / RESULTS).is_file() else "stopped"

    @property
    def active(self) -> bool:
        return self.job is not None and self.job.active

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe's keys as its file has them; none if it cannot be read."""
        for path in (self.folder / RECIPE, self.output / RECIPE):
            try:
                values = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            if isinstance(values, dict):
                return {str(key): value for key, value in values.items()}
        return {}

    @cached_property
    def log(self) -> LogSummary:
        return summarise(self.log_path)

    @cached_property
    def results(self) -> dict[str, Any] | None:
        """train_results.json of a run that has ended well."""
        try:
            values: dict[str, Any] = json.loads((self.output / RESULTS).read_bytes())
        except (OSError, ValueError):
            return None
        return values

    def last(self, key: str) -> Any:
        """The last value of a field of the log; None if there is none."""
        return self.log.last.get(key)

    @property
    def steps(self) -> int:
        return self.log.steps

    @property
    def total_steps(self) -> int | None:
        total = self.last("total_steps")
        return int(total) if total else None

    @property
    def seconds_left(self) -> float | None:
        """By the speed so far; None before the first record and after the end."""
        elapsed, total, first = seconds(self.last("elapsed_time")), self.total_steps, self.log.first_timed
        if not self.active or elapsed is None or first is None or not total:
            return None
        steps, time = self.steps - first[0], elapsed - first[1]
        return time / steps * (total - self.steps) if steps > 0 and time > 0 else None

    @property
    def notes(self) -> str:
        path = self.folder / NOTES
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def find_run(workspace: Workspace, jobs: Jobs, name: str) -> Run:
    """Raises StudioError (404) if there is no such run."""
    folder = workspace.existing("runs", name)
    return Run(folder.name, folder, next(iter(jobs.list(KIND, run=folder.name)), None))


def list_runs(workspace: Workspace, jobs: Jobs) -> list[Run]:
    """All runs, those first that began last."""
    latest: dict[str, Job] = {}
    for job in jobs.list(KIND):
        latest.setdefault(str(job.spec.about.get("run")), job)
    runs = [Run(name, workspace.path("runs", name), latest.get(name)) for name in workspace.names("runs")]
    return sorted(runs, key=lambda run: run.job.queued_at if run.job else 0.0, reverse=True)
