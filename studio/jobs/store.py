"""All jobs of a workspace. The folder is the truth: any number of stores may look at it and none holds a state."""

from __future__ import annotations

import fcntl
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from modelfiles.hardware.python_child import module_command
from studio.errors import StudioError
from studio.jobs.job import (
    LAUNCH,
    LOG,
    SPEC,
    STOP,
    Job,
    processes_of,
    read_job,
    read_json,
    write_exit,
    write_json,
    write_stop,
)
from studio.jobs.process import ProcessId
from studio.jobs.spec import JobSpec

ID = re.compile(r"\d{8}-\d{9}-[0-9a-f]{6}")  # sorted by name is sorted by time


class Jobs:
    """The jobs below one folder: submitted, started when their GPUs are free, stopped, found again after a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[str, Job] = {}  # jobs that are over, which change no more
        self._threads = threading.Lock()

    def submit(self, spec: JobSpec) -> Job:
        """Queue a job and start it if it can be. Raises StudioError (409) if its `exclusive` is taken."""
        with self._lock():
            if spec.exclusive is not None:
                for other in self._all():
                    if other.active and other.spec.exclusive == spec.exclusive:
                        raise StudioError("errors.already_running", status=409, title=other.spec.title)
            now = time.time()
            moment = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}{int(now % 1 * 1000):03}"
            job_id = f"{moment}-{secrets.token_hex(3)}"
            folder = self.folder / job_id
            try:
                folder.mkdir(parents=True)
                write_json(folder / SPEC, {"spec": spec.as_plain(), "queued_at": now}, durable=True)
            except OSError as error:
                raise StudioError("errors.disk", status=507, path=folder, reason=error.strerror) from None
        self.tick()
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises StudioError (404) if there is no such job."""
        if job_id in self._ended:
            return self._ended[job_id]
        job = read_job(self.folder / job_id) if ID.fullmatch(job_id) else None
        if job is None:
            raise StudioError("errors.missing", status=404, name=job_id)
        if not job.active:
            self._ended[job_id] = job
        return job

    def list(self, kind: str | None = None, **about: object) -> Sequence[Job]:
        """The jobs of a kind and of a thing (run="x"), newest first."""
        found = [job for job in self._all() if kind is None or job.spec.kind == kind]
        return [job for job in reversed(found) if about.items() <= job.spec.about.items()]

    def stop(self, job_id: str) -> Job:
        """Ask a job to end: it may save first (SIGTERM) and is killed after its grace. One that is over stays so."""
        job = self.get(job_id)
        if job.active:
            with self._lock():
                write_stop(job.folder)
            self.tick()
        return self.get(job_id)

    def tick(self) -> None:
        """See to what no wrapper does: start what waits and may run, finish what lost its wrapper."""
        with self._lock():
            busy: set[int] = set()
            for job in self._all():
                if not job.active:
                    continue
                wrapper, command = processes_of(job.folder)
                if wrapper is not None:
                    if not wrapper.alive():
                        self._finish_lost(job, command)
                    busy |= set(job.spec.gpus)
                elif job.state == "stopping":
                    write_exit(job.folder, "stopped", None, None)
                else:
                    if not busy & set(job.spec.gpus):
                        self._start(job)
                    busy |= set(job.spec.gpus)  # an earlier job that waits goes first

    def _all(self) -> Sequence[Job]:
        """Every job, oldest first."""
        ids = sorted(path.name for path in self.folder.iterdir() if ID.fullmatch(path.name))
        found = []
        for job_id in ids:
            try:
                found.append(self.get(job_id))
            except StudioError:  # its folder is being made, or was removed
                self._ended.pop(job_id, None)
        return found

    def _start(self, job: Job) -> None:
        with (job.folder / LOG).open("ab") as log:
            wrapper = subprocess.Popen(
                [*module_command("studio.jobs.wrapper"), str(job.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        threading.Thread(target=wrapper.wait, daemon=True).start()  # so that no zombie stays
        identity = ProcessId.of(wrapper.pid)
        if identity is not None:
            write_json(job.folder / LAUNCH, {"wrapper": identity.as_plain(), "started_at": time.time()})

    def _finish_lost(self, job: Job, command: ProcessId | None) -> None:
        """The wrapper was killed: nobody will know the exit code, and what is left of the command must end."""
        if (read_job(job.folder) or job).ended_at is not None:
            return  # it ended between the two looks
        try:
            if command is not None and command.group_alive():
                asked = read_json(job.folder / STOP)
                if asked is None:
                    write_stop(job.folder)
                    command.signal_group(signal.SIGTERM)
                elif time.time() - asked["at"] > job.spec.grace:
                    command.signal_group(signal.SIGKILL)
                return
            write_exit(job.folder, "lost", None, None)
        except OSError:  # a full disk, most likely: it is over nevertheless
            self._ended[job.id] = replace(job, state="lost", ended_at=time.time())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One store at a time, in this process and in others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._threads, (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
