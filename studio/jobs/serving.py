"""`lensmith serve` as a job: its command, its address, and whether it answers yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from modelfiles.hardware.python_child import module_command
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.workspace.sources import Source

TUNED = "tuned"  # the adapter's model name beside its base's
GRACE = 20.0  # seconds for the answers in flight and the engine's end
LINES = 20
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

Phase = Literal["none", "waiting", "starting", "ready", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class Health:
    """phase: where it stands; message: in the gateway's words why it does not answer yet; lines: its last output."""

    phase: Phase
    message: str = ""
    lines: tuple[str, ...] = ()


def serve_job(
    kind: str,
    source: Source,
    cwd: Path,
    *,
    port: int,
    host: str = "127.0.0.1",
    name: str = "",
    gpus: tuple[int, ...] = (),
    keys: Path | None = None,
    exclusive: str | None = None,
) -> JobSpec:
    """The job that serves a source; its `about` says where and under which model names."""
    name = name or source.base.name
    tuned = TUNED if name != TUNED else f"{TUNED}-2"
    command = [*module_command("lensmith"), "serve", str(source.base), "--host", host, "--port", str(port)]
    command += ["--model-name", name]
    if source.adapter is not None:
        command += ["--adapters", f"{tuned}={source.adapter}"]
    if source.image_pixels:
        command += ["--image-pixels", str(source.image_pixels)]
    if keys is not None:
        command += ["--keys", str(keys)]
    about = {
        "source": source.key,
        "title": source.title,
        "host": host,
        "port": port,
        "base": name,
        "tuned": tuned if source.adapter is not None else "",
        "digest": source.digest,
    }
    return JobSpec(
        kind=kind,
        title=source.title,
        command=command,
        cwd=cwd,
        gpus=gpus,
        about=about,
        exclusive=exclusive,
        grace=GRACE,
    )


def url_of(job: Job) -> str:
    """Its address on this machine, without a slash at the end."""
    return f"http://127.0.0.1:{job.spec.about['port']}"


def model_names(job: Job) -> list[str]:
    about = job.spec.about
    return [name for name in (about["base"], about["tuned"]) if name]


async def health_of(client: httpx.AsyncClient, job: Job) -> Health:
    """Whether the gateway of this job answers. Never raises for what the gateway does."""
    if not job.active:
        if job.state in ("stopped", "done"):
            return Health("stopped")
        lines = last_lines(job)
        return Health("failed", _sentence(lines), lines)
    if job.state != "running":
        return Health("stopping" if job.state == "stopping" else "waiting")
    try:
        answer = await client.get(f"{url_of(job)}/ready", timeout=5)
        told: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError):
        return Health("starting")
    models = told.get("models") or {}
    if answer.status_code == 200 and all(model["ready"] for model in models.values()):
        return Health("ready")
    replicas = [replica for model in models.values() for replica in model["replicas"]]
    reason = next((replica["reason"] for replica in replicas if replica.get("reason")), "")
    return Health("starting", reason)


def last_lines(job: Job) -> tuple[str, ...]:
    """The last lines of its output, without colours and empty ones."""
    lines = [_COLOUR.sub("", line).rstrip() for line in job.tail()[0].splitlines()]
    return tuple([line for line in lines if line][-LINES:])


def _sentence(lines: tuple[str, ...]) -> str:
    """The command's own last word, which is a sentence; else its last line."""
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return said[-1] if said else lines[-1] if lines else ""
