"""Gateways of the page Serve: started, watched by their metrics, stopped."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.tenants.keys import digest, new_secret, write_keys
from gateway.tenants.limits import Key
from modelfiles.folder.atomic_write import write_atomically
from modelfiles.hardware.python_child import free_port
from studio.errors import StudioError
from studio.jobs.devices import Device
from studio.jobs.job import Job
from studio.jobs.memory import check_room, gpus_of
from studio.jobs.serving import serve_job, url_of
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace
from studio.workspace.names import check_name
from studio.workspace.sources import Source

KIND = "gateway"
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"  # the latter asks for a key
KEYS, SECRET = "keys.json", "key.txt"
HISTORY = "figures.jsonl"  # in the job's folder: what its page has seen, {"at": seconds since the epoch} | figures
POINTS = 450  # that charts show: the last 15 minutes of a page that looks every 2 seconds


@dataclass(frozen=True)
class Figures:
    """Sums of a gateway's metrics since its start. Seconds, counts."""

    requests: float = 0
    errors: float = 0
    running: float = 0
    waiting: float = 0
    tokens: float = 0
    first_sum: float = 0
    first_count: float = 0

    def as_plain(self) -> dict[str, float]:
        return asdict(self)


def start(
    workspace: Workspace, jobs: Jobs, source: Source, device: Device, *, name: str, port: str, everywhere: bool
) -> Job:
    """Serve a source at a port, chosen or free. Raises StudioError.

    everywhere: other machines may ask too; then a key is made, which clients must send.
    """
    if source.whole:
        raise StudioError("serve.export_first", title=source.title)
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise StudioError("errors.parameters", name="port")
    number = int(port) if port else free_port()
    active = [job for job in jobs.list(KIND) if job.active]
    if any(job.spec.about["port"] == number for job in active):
        raise StudioError("serve.port_taken", status=409, port=number)
    name = check_name(name or source.title)
    if any(job.spec.about["base"] == name and job.spec.about["source"] == source.key for job in active):
        raise StudioError("errors.already_running", status=409, title=name)
    check_room(source, device)
    keys = _make_key(workspace, name) if everywhere else None
    return jobs.submit(
        serve_job(
            KIND,
            source,
            workspace.folder,
            port=number,
            host=EVERYWHERE if everywhere else LOOPBACK,
            name=name,
            gpus=gpus_of(device),
            keys=keys,
            exclusive=f"gateway/{number}",
        )
    )


def find(jobs: Jobs, job_id: str) -> Job:
    """Raises StudioError (404) for a job that is no gateway."""
    job = jobs.get(job_id)
    if job.spec.kind != KIND:
        raise StudioError("errors.missing", status=404, name=job_id)
    return job


def secret_of(workspace: Workspace, job: Job) -> str:
    """The key that its clients send; "" for one that asks for none."""
    if job.spec.about["host"] == LOOPBACK:
        return ""
    try:
        return (workspace.path("gateways", job.spec.about["base"]) / SECRET).read_text(encoding="utf-8")
    except OSError:
        return ""


async def figures_of(client: httpx.AsyncClient, job: Job, secret: str) -> Figures:
    """What its /metrics says; zeros while it does not answer."""
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    try:
        answer = await client.get(f"{url_of(job)}/metrics", headers=headers, timeout=5)
        answer.raise_for_status()
    except httpx.HTTPError:
        return Figures()
    return read_figures(answer.text)


def note(job: Job, figures: Figures) -> dict[str, float]:
    """Keeps the figures of this moment, so that the charts are whole on every page that is opened later."""
    point = {"at": round(time.time(), 1)} | figures.as_plain()
    path = job.folder / HISTORY
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
            length = file.tell()
        if length > 2 * POINTS * len(json.dumps(point)):
            write_atomically(path, "".join(f"{json.dumps(one)}\n" for one in history_of(job)).encode(), durable=False)
    except OSError:  # a full disk: the page goes on without
        pass
    return point


def history_of(job: Job) -> list[dict[str, float]]:
    """The last points that were kept, oldest first."""
    try:
        lines = (job.folder / HISTORY).read_text(encoding="utf-8").splitlines()[-POINTS:]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def read_figures(text: str) -> Figures:
    """The sums over models and statuses in Prometheus' text format."""
    sums: dict[str, float] = {}
    errors = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name == "lensmith_requests_total" and sample.labels.get("status", "")[:1] in ("4", "5"):
                errors += sample.value
    first = "lensmith_time_to_first_token_seconds"
    return Figures(
        requests=sums.get("lensmith_requests_total", 0.0),
        errors=errors,
        running=sums.get("lensmith_requests_running", 0.0),
        waiting=sums.get("lensmith_requests_waiting", 0.0),
        tokens=sums.get("lensmith_generation_tokens_total", 0.0),
        first_sum=sums.get(f"{first}_sum", 0.0),
        first_count=sums.get(f"{first}_count", 0.0),
    )


def _make_key(workspace: Workspace, name: str) -> Path:
    """A key file with one new key, and the key itself beside it for its owner alone. Raises StudioError."""
    folder = workspace.path("gateways", name)
    secret = new_secret()
    try:
        folder.mkdir(exist_ok=True)
        write_keys(folder / KEYS, [Key("studio", digest(secret), time.strftime("%Y-%m-%d"))])
        write_atomically(folder / SECRET, secret.encode(), mode=0o600)
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=folder, reason=error.strerror) from None
    return folder / KEYS
