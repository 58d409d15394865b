"""What a run can compute on: this machine's GPUs with their free memory, or its processor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.planning.gpu import NoGpu, query_gpus
from modelfiles.hardware.gpus import GIB, GPU_MODELS
from studio.jobs.job import Job
from studio.jobs.spec import CPU

ASK_SECONDS = 3.0  # how long an answer of nvidia-smi is good for


@dataclass(frozen=True)
class Device:
    """A GPU, or the processor (index CPU). Memory in GiB; job: the one that has it; waiting: how many more want it."""

    index: int
    name: str
    total_gib: float
    free_gib: float
    job: Job | None = None
    waiting: int = 0

    @property
    def is_gpu(self) -> bool:
        return self.index != CPU

    @property
    def card(self) -> str:
        """What `lensmith check --gpu` calls it."""
        known = (key for key, model in GPU_MODELS.items() if model.name.split(" ")[0] in self.name.split(" "))
        fitting = (key for key in known if abs(GPU_MODELS[key].total_gib - self.total_gib) < 2)
        return next(fitting, f"{max(1.0, self.total_gib):.1f}")


class Devices:
    """The machine's devices; nvidia-smi is asked at most every few seconds."""

    def __init__(self) -> None:
        self._asked = -ASK_SECONDS
        self._found: list[Device] = []

    def list(self, jobs: Sequence[Job] = ()) -> list[Device]:
        """GPUs in nvidia-smi's order, or the processor alone where there is none."""
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._found, self._asked = _ask(), time.monotonic()
        active = [job for job in jobs if job.active]
        return [_with_jobs(device, active) for device in self._found]


def _ask() -> list[Device]:
    try:
        found = query_gpus()
    except NoGpu:
        page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        return [Device(CPU, f"{len(os.sched_getaffinity(0))}", page * pages / GIB, page * free / GIB)]
    return [Device(index, gpu.name, gpu.memory / GIB, gpu.free / GIB) for index, gpu in enumerate(found)]


def _with_jobs(device: Device, active: Sequence[Job]) -> Device:
    here = [job for job in active if device.index in job.spec.gpus]
    running = next((job for job in here if job.state != "queued"), None)
    waiting = sum(job.state == "queued" for job in here)
    return Device(device.index, device.name, device.total_gib, device.free_gib, running, waiting)
