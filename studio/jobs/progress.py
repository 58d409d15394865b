"""How far a job has come, in the job's events for the page."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from studio.jobs.job import EVENTS
from studio.jobs.wrapper import JOB_FOLDER

INTERVAL = 0.3  # seconds between two events of one stage


class Progress:
    """Appends {"stage", "done", "total"} to the events of the job that this process is; outside a job, nothing."""

    def __init__(self) -> None:
        folder = os.environ.get(JOB_FOLDER)
        self.path = Path(folder) / EVENTS if folder else None
        self.stage, self.at = "", 0.0

    def say(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Note that so many (files, rows) of a stage are done."""
        now = time.monotonic()
        if self.path is None or (stage == self.stage and now - self.at < INTERVAL):
            return
        self.stage, self.at = stage, now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
