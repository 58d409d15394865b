"""Whether a model fits beside what runs already: asked before it is loaded, and answered with figures."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.hardware.gpus import GIB
from studio.errors import StudioError
from studio.jobs.devices import Device, Devices
from studio.jobs.spec import CPU
from studio.jobs.store import Jobs
from studio.workspace.sources import Source

GPU_BESIDE = 1.5  # GiB: CUDA's context, and the cache and activations of a few answers
CPU_BESIDE = 0.6  # GiB: the engine's libraries, the gateway
FLOAT32 = 4  # bytes; the embedded engine computes in it on a processor


def devices_now(devices: Devices, jobs: Jobs) -> list[Device]:
    """The devices, with the memory that a processor has for a new program."""
    found = devices.list(jobs.list())
    return [device if device.is_gpu else replace(device, free_gib=available_gib(device.free_gib)) for device in found]


def available_gib(fallback: float, source: Path = Path("/proc/meminfo")) -> float:
    """What the kernel can give without swapping: free memory and caches."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return fallback
    values = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return values[0] * 1024 / GIB if values else fallback


def check_room(source: Source, device: Device) -> None:
    """Raises StudioError (409) with figures if a job holds the card, or if the model is larger than what is free."""
    needed = needed_gib(source.base, device)
    figures = {
        "device": device.name,
        "free": f"{device.free_gib:.1f}",
        "total": f"{device.total_gib:.1f}",
        "needed": f"{needed:.1f}",
        "model": source.base.name,
    }
    if device.is_gpu and device.job is not None:
        raise StudioError("chat.card_held", status=409, job=device.job.spec.title, **figures)
    if needed > device.free_gib:
        raise StudioError("chat.no_room_gpu" if device.is_gpu else "chat.no_room_cpu", status=409, **figures)


def needed_gib(base: Path, device: Device) -> float:
    """GiB that an engine of this model takes at least. Raises StudioError if it is no model folder."""
    try:
        tensors = ModelFolder.open(base).tensors.values()
    except ModelFolderError as error:
        raise StudioError(str(error)) from None
    if device.is_gpu:
        return sum(tensor.size for tensor in tensors) / GIB + GPU_BESIDE
    return sum(prod(tensor.shape) * FLOAT32 for tensor in tensors) / GIB + CPU_BESIDE


def find_device(found: list[Device], index: str) -> Device:
    """The device that a form names; the one with the most free memory if it names none. Raises StudioError."""
    chosen = [device for device in found if str(device.index) == index]
    if index and not chosen:
        raise StudioError("errors.parameters", name="device")
    return chosen[0] if chosen else max(found, key=lambda device: (device.job is None, device.free_gib))


def gpus_of(device: Device) -> tuple[int, ...]:
    """What the job of an engine claims: a card for itself. A processor is shared with the other jobs."""
    return () if device.index == CPU else (device.index,)
