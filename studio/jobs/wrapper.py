"""The process around a job's command: it starts it, stops it, and writes down how it ended.

python -m studio.jobs.wrapper FOLDER

It is in a session of its own and outlives the studio. It imports nothing that is not small.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from modelfiles.hardware.python_child import die_with_parent
from studio.jobs.job import LOG, PROCESS, STOP, State, read_job, write_exit, write_json, write_stop
from studio.jobs.process import ProcessId, adopt_orphans, descendants
from studio.jobs.spec import CPU, JobSpec
from studio.jobs.store import Jobs

POLL = 0.1  # seconds between two looks at the command and at STOP
KILL_SECONDS = 5.0  # how long a killed process may take to go
JOB_FOLDER = "LENSMITH_JOB_FOLDER"  # the command's environment: where its EVENTS go


def main(folder: Path) -> None:
    """Run the job of `folder` to its end. A second wrapper for the same folder ends at once."""
    with (folder / "wrapper.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        job = read_job(folder)
        if job is not None and job.ended_at is None:
            Wrapper(folder, job.spec).run()
    Jobs(folder.parent).tick()  # the next one, though no studio may be running


class Wrapper:
    """One run of a command, from its start to the file that says how it ended."""

    def __init__(self, folder: Path, spec: JobSpec) -> None:
        self.folder, self.spec = folder, spec
        self.process: dict[str, Any] = {}
        self.stop_at: float | None = None  # when SIGTERM was sent, by the monotonic clock
        self.killed = False
        self.reason = ""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        own = ProcessId.of(os.getpid())
        assert own is not None
        self.process = {"wrapper": own.as_plain(), "started_at": time.time()}
        write_json(self.folder / PROCESS, self.process)
        with (self.folder / LOG).open("ab") as log:
            try:
                command = self._start(log.fileno())
            except OSError as error:
                log.write(f"{self.spec.command[0]} could not be started: {error.strerror}\n".encode())
                self._end(None, None, "not started")
                return
            code = self._watch(command)
        self._end_leftovers()
        self._end(code if code >= 0 else None, -code if code < 0 else None, self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        write_stop(self.folder)  # the machine is going down, or somebody ends the wrapper: as a stop

    def _start(self, log: int) -> subprocess.Popen[bytes]:
        # Processes that the command spawns import nothing from the folder they run in (Python 3.11 and newer).
        own = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", JOB_FOLDER: str(self.folder)}
        env = os.environ | own | self.spec.env
        if self.spec.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in self.spec.gpus if index != CPU)
        command = subprocess.Popen(
            self.spec.command,
            cwd=self.spec.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),
        )
        started = ProcessId.of(command.pid)
        if started is not None:
            write_json(self.folder / PROCESS, self.process | {"command": started.as_plain()})
        return command

    def _watch(self, command: subprocess.Popen[bytes]) -> int:
        """Wait for the command's end; its exit code, negative for a signal."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return command.wait(POLL)
            if self.stop_at is None and self._silent():
                self.reason = "hung"
                write_stop(self.folder)
            if self.stop_at is None and (self.folder / STOP).exists():
                self.stop_at = time.monotonic()
                os.killpg(command.pid, signal.SIGTERM)
                os.killpg(command.pid, signal.SIGCONT)  # a process that was suspended cannot end
            elif self.stop_at is not None and not self.killed and time.monotonic() - self.stop_at > self.spec.grace:
                self.killed = True
                os.killpg(command.pid, signal.SIGKILL)

    def _silent(self) -> bool:
        written = (self.folder / LOG).stat().st_mtime
        begun = float(self.process["started_at"])
        return self.spec.silence is not None and time.time() - max(written, begun) > self.spec.silence

    def _end_leftovers(self) -> None:
        """Kill what the command left running, in its group or out of it: nothing of a job survives its end."""
        deadline = time.monotonic() + KILL_SECONDS
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)

    def _end(self, code: int | None, number: int | None, reason: str) -> None:
        stopped = (self.folder / STOP).exists() and not reason
        state: State = "done" if code == 0 and not reason else "stopped" if stopped else "failed"
        write_exit(self.folder, state, code, number, reason)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
