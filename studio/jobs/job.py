"""One job as its folder shows it: what it is, where it stands, what it wrote."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelfiles.folder.atomic_write import write_atomically
from studio.jobs.process import ProcessId
from studio.jobs.spec import JobSpec

State = Literal["queued", "running", "stopping", "done", "failed", "stopped", "lost"]
ACTIVE: tuple[State, ...] = ("queued", "running", "stopping")
TAIL_BYTES = 65536  # most that `tail` gives at once

# The files of a job's folder, each written by one side and read by the other.
SPEC = "job.json"  # the store's: what to do, and since when it waits
LAUNCH = "launch.json"  # the store's: the wrapper that it started, as ProcessId
PROCESS = "process.json"  # the wrapper's: itself and the command
STOP = "stop.json"  # the store's: somebody wants it to end
EXIT = "exit.json"  # the wrapper's last word (or the store's, if the wrapper was killed)
LOG = "output.log"  # what the command printed, both streams
EVENTS = "events.jsonl"  # what a job tells the page: JSON lines, written by the command


@dataclass(frozen=True)
class Job:
    """A job at the moment when its folder was read. Times are seconds since the epoch.

    state: "done" is exit code 0 and nothing else; "stopped" ended because somebody asked; "lost" is a job whose wrapper
    was killed, so that nobody knows its exit code. exit_code: None if a signal ended it. reason: "", "hung" or "not
    started".
    """

    id: str
    spec: JobSpec
    folder: Path
    state: State
    queued_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def log_path(self) -> Path:
        return self.folder / LOG

    @property
    def events_path(self) -> Path:
        return self.folder / EVENTS

    @property
    def last_sign(self) -> float:
        """When it last wrote something."""
        times = [path.stat().st_mtime for path in (self.log_path, self.events_path) if path.exists()]
        return max([self.started_at or self.queued_at, *times])

    @property
    def silent_seconds(self) -> float:
        """How long it has not written anything."""
        return max(0.0, time.time() - self.last_sign)

    def tail(self, offset: int = -1) -> tuple[str, int]:
        """What the log has from `offset` bytes on (-1: the last TAIL_BYTES), and the offset to go on from."""
        try:
            with self.log_path.open("rb") as file:
                size = file.seek(0, 2)
                begin = max(0, size - TAIL_BYTES) if offset < 0 else min(offset, size)
                file.seek(begin)
                data = file.read(TAIL_BYTES)
        except FileNotFoundError:
            return "", 0
        return data.decode("utf-8", "replace"), begin + len(data)


def read_job(folder: Path) -> Job | None:
    """The job in this folder; None if there is none (yet)."""
    given = read_json(folder / SPEC)
    if given is None:
        return None
    end, process = read_json(folder / EXIT), _process(folder)
    stopping = (folder / STOP).exists()
    state: State = "stopping" if stopping else "running" if process else "queued"
    if end is not None:
        state = end["state"]
    return Job(
        id=folder.name,
        spec=JobSpec.from_plain(given["spec"]),
        folder=folder,
        state=state,
        queued_at=given["queued_at"],
        started_at=process.get("started_at"),
        ended_at=end["ended_at"] if end else None,
        exit_code=end["exit_code"] if end else None,
        signal=end["signal"] if end else None,
        reason=end["reason"] if end else "",
    )


def processes_of(folder: Path) -> tuple[ProcessId | None, ProcessId | None]:
    """The wrapper's and the command's identity, as far as they were started."""
    process = _process(folder)
    return ProcessId.from_plain(process.get("wrapper")), ProcessId.from_plain(process.get("command"))


def _process(folder: Path) -> dict[str, Any]:
    return read_json(folder / PROCESS) or read_json(folder / LAUNCH) or {}


def write_json(path: Path, values: dict[str, Any], *, durable: bool = False) -> None:
    """Raises OSError."""
    write_atomically(path, json.dumps(values).encode(), durable=durable)


def write_stop(folder: Path) -> None:
    """Ask for the end of a job; the time of the first asking counts. Raises OSError."""
    if not (folder / STOP).exists():
        write_json(folder / STOP, {"at": time.time()})


def write_exit(folder: Path, state: State, code: int | None, number: int | None, reason: str = "") -> None:
    """The last word about a job, which survives a crash of the machine. Raises OSError."""
    end = {"state": state, "exit_code": code, "signal": number, "reason": reason, "ended_at": time.time()}
    write_json(folder / EXIT, end, durable=True)


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return values
