"""GPUs by name: their memory, and what they compute in."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from finetune.errors import FinetuneError
from modelfiles.hardware.gpus import GIB, GPU_MODELS, UNKNOWN_CAPABILITY

# GiB of a card that the CUDA context of a training process takes; PyTorch cannot reserve them.
CONTEXT_GIB = 0.5


@dataclass(frozen=True)
class Card:
    """A GPU. gib: its memory in GiB as CUDA shows it; capability: its CUDA compute capability."""

    name: str
    gib: float
    capability: tuple[int, int]

    @property
    def usable_bytes(self) -> float:
        """What PyTorch can reserve: the memory without the CUDA context."""
        return (self.gib - CONTEXT_GIB) * GIB


CARDS = {key: Card(f"NVIDIA {gpu.name}", gpu.total_gib, gpu.capability) for key, gpu in GPU_MODELS.items()}


def find_card(name: str) -> Card:
    """A card by its name, or one of so many GiB that has bfloat16. Raises FinetuneError."""
    card = CARDS.get(name.lower())
    if card is not None:
        return card
    try:
        gib = float(name)
    except ValueError:
        gib = 0.0
    if not 1 <= gib <= 10_000:
        near = difflib.get_close_matches(name.lower(), CARDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"use {', '.join(CARDS)}, or GiB of memory."
        raise FinetuneError(f"--gpu: {name!r} is no card known here; {meant}")
    return Card(f"a GPU of {gib:g} GiB", gib, UNKNOWN_CAPABILITY)


def this_card() -> Card | None:
    """The GPU of this machine, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    del free
    name = torch.cuda.get_device_name()
    return Card(name, total / GIB, torch.cuda.get_device_capability())
