"""GPUs by name: their memory, and what they compute in."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from finetune.errors import FinetuneError


@dataclass(frozen=True)
class Card:
    """A GPU. gib: what PyTorch can reserve of it, after the CUDA context; capability: its CUDA compute capability."""

    name: str
    gib: float
    capability: tuple[int, int]


CARDS = {
    "t4": Card("NVIDIA T4", 14.6, (7, 5)),
    "l4": Card("NVIDIA L4", 21.8, (8, 9)),
    "a10": Card("NVIDIA A10", 21.8, (8, 6)),
    "a100-40": Card("NVIDIA A100 40GB", 39.0, (8, 0)),
    "a100": Card("NVIDIA A100 80GB", 78.8, (8, 0)),
    "h100": Card("NVIDIA H100", 78.8, (9, 0)),
    "h200": Card("NVIDIA H200", 139.3, (9, 0)),
}
CONTEXT_GIB = 0.5  # what CUDA itself takes of a card of which only the size is known


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
    return Card(f"a GPU of {gib:g} GiB", gib - CONTEXT_GIB, (8, 0))


def this_card() -> Card | None:
    """The GPU of this machine, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    del free
    name = torch.cuda.get_device_name()
    return Card(name, total / 2**30, torch.cuda.get_device_capability())
