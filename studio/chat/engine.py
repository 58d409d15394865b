"""The one engine that the chat page talks to: started for a source, found again, unloaded."""

from __future__ import annotations

from modelfiles.hardware.python_child import free_port
from studio.errors import StudioError
from studio.jobs.devices import Device
from studio.jobs.job import Job
from studio.jobs.memory import check_room, gpus_of
from studio.jobs.serving import serve_job
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from studio.workspace.sources import Source

KIND = "chat"  # of its jobs, and what two of them exclude each other by


def current(jobs: Jobs) -> Job | None:
    """The engine that was started last, running or not."""
    found = jobs.list(KIND)
    return found[0] if found else None


def start(workspace: Workspace, jobs: Jobs, source: Source, device: Device) -> Job:
    """Load a source; if it is loaded already, that engine. Raises StudioError if another is, or if there is no room."""
    loaded = current(jobs)
    if loaded is not None and loaded.active and loaded.state != "stopping":
        if loaded.spec.about["source"] == source.key:
            return loaded
        raise StudioError("chat.other_loaded", status=409, title=loaded.spec.title)
    if source.whole:
        raise StudioError("chat.export_first", title=source.title)
    check_room(source, device)
    spec = serve_job(KIND, source, workspace.folder, port=free_port(), gpus=gpus_of(device), exclusive=KIND)
    return jobs.submit(spec)


def unload(jobs: Jobs) -> None:
    """End the engine, which frees its memory."""
    loaded = current(jobs)
    if loaded is not None and loaded.active:
        jobs.stop(loaded.id)
