"""The GPUs an engine may run on: cards by name for planning, and those of this machine as nvidia-smi reports them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass

from modelfiles.hardware.gpus import GIB, GPU_MODELS, UNKNOWN_CAPABILITY, GpuModel

MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One card. `memory` and `free` are bytes as CUDA shows them: the driver's own share is not in them.

    `capability` is CUDA's compute capability, (7, 5) for Turing. `count` is how many such cards the machine has.
    """

    name: str
    memory: int
    free: int
    capability: tuple[int, int]
    count: int = 1
    driver: str = ""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16 (CUDA C++ Programming Guide: compute capability 8.0)."""
        return self.capability >= (8, 0)


def _empty(model: GpuModel) -> Gpu:
    """A card of this model with all of its memory free."""
    memory = int(model.total_gib * GIB)
    return Gpu(model.name, memory, memory, model.capability)


CARDS = {key: _empty(model) for key, model in GPU_MODELS.items()}


def parse_gpu(text: str) -> Gpu:
    """A card by its name, or one of so many GiB that is at least an Ampere. Raises ValueError."""
    card = CARDS.get(text.lower())
    if card is not None:
        return card
    try:
        gib = float(text.lower().removesuffix("gib"))
    except ValueError:
        gib = math.nan
    if not 1 <= gib <= 1024:
        raise ValueError(f"{text!r} is neither a card ({', '.join(CARDS)}) nor its memory in GiB, such as 22.5")
    return _empty(GpuModel(f"{gib:g} GiB card", gib, UNKNOWN_CAPABILITY))


class NoGpu(Exception):
    """There is no NVIDIA GPU to ask; the message says why in one sentence."""


_QUERY = "name,memory.total,memory.free,compute_cap,driver_version"


def query_gpus() -> list[Gpu]:
    """The machine's cards, asked of nvidia-smi. Raises NoGpu."""
    program = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    if program is None:
        raise NoGpu("nvidia-smi is not installed, so there is no NVIDIA driver")
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGpu(f"nvidia-smi does not work: {error}") from None
    gpus = [gpu for line in answer.stdout.splitlines() if (gpu := _parse_line(line))]
    if answer.returncode != 0 or not gpus:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        raise NoGpu(f"nvidia-smi finds no GPU: {said[0].rstrip('.') if said else f'exit code {answer.returncode}'}")
    return [Gpu(g.name, g.memory, g.free, g.capability, len(gpus), g.driver) for g in gpus]


def _parse_line(line: str) -> Gpu | None:
    match = re.fullmatch(r"(.+), (\d+), (\d+), (\d+)\.(\d+), ([\w.]+)", line.strip())
    if match is None:
        return None
    name, total, free, major, minor, driver = match.groups()
    # memory.total counts what the driver reserves for itself, memory.free does not, and so CUDA sees their minimum.
    return Gpu(name, int(total) * MIB, int(free) * MIB, (int(major), int(minor)), driver=driver)
