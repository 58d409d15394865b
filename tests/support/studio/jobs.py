"""Small jobs for tests, and waiting for what becomes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from studio.jobs.job import Job
from studio.jobs.process import ProcessId
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from tests.support.gateway.processes import until

SLEEP = "import time; print('up', flush=True); time.sleep(120)"
# Ignores SIGTERM, as a worker does that hangs in a system call.
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP


def python(code: str, cwd: Path, **fields: Any) -> JobSpec:
    """A job that runs this Python code."""
    return JobSpec(**{"kind": "test", "title": "a test", "command": [sys.executable, "-c", code], "cwd": cwd} | fields)


def finished(jobs: Jobs, job: Job) -> Job:
    """The job once it is over."""

    def over() -> Job | None:
        jobs.tick()
        now = jobs.get(job.id)
        return None if now.active else now

    found: Job = until(f"{job.id} ends", over)
    return found


def printed(job: Job, text: str) -> None:
    """Wait until the job has printed this."""
    until(f"{job.id} prints {text}", lambda: text in job.tail()[0])


def alive(pid: int) -> bool:
    """Whether a process with this pid runs (and is not only waiting to be reaped)."""
    return ProcessId.of(pid) is not None
