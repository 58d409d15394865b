"""Times a training's optimiser steps from inside its process, in the turns that the parent gives."""

from __future__ import annotations

import json
import os
import resource
import time
from dataclasses import dataclass, field
from typing import IO, Any

GIB = 2**30
SAMPLES = 8  # of an optimiser step: micro-batches of 2, 4 of them


@dataclass
class Meter:
    """Reports each turn to the parent and waits for the next; ends the process when there is none.

    warm: steps before the first turn; turn: steps of a turn, of which the first is not counted, since data loaders
    read ahead while others have their turn. started: epoch second at which the process was started.
    """

    warm: int
    turn: int
    started: float
    reports: IO[bytes]
    permissions: IO[bytes]
    facts: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    steps: int = 0
    loaded_s: float = 0.0

    def begin(self) -> None:
        """Everything is loaded and the first step begins."""
        synchronise()
        self.loaded_s = time.time() - self.started

    def end_step(self, loss: float | None = None) -> None:
        synchronise()
        self.steps += 1
        self.ends.append(time.monotonic())
        if loss is not None:
            self.losses.append(loss)
        if self.steps == 1:
            self.facts["first_step_seconds"] = round(time.time() - self.started, 1)
        if self.steps == self.warm:
            self._hand_over("warm", warm_seconds=round(time.time() - self.started, 1))
        elif self.steps > self.warm and (self.steps - self.warm) % self.turn == 0:
            self._hand_over("turn", seconds=self.ends[-1] - self.ends[0], steps=len(self.ends) - 1)

    def _hand_over(self, what: str, **figures: Any) -> None:
        report = {"what": what, "loaded_seconds": round(self.loaded_s, 1), **self.facts, **memory(), **figures}
        self.reports.write(json.dumps(report | {"losses": [round(x, 4) for x in self.losses]}).encode() + b"\n")
        self.reports.flush()
        if not self.permissions.read(1):
            os._exit(0)  # what a tool does after its last step, saving and reports, belongs to no figure
        self.ends.clear()


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> dict[str, Any]:
    """Peaks in GiB: of the card, as PyTorch's allocator took it, and of this process in host memory."""
    import torch

    host = {"host_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)}
    if not torch.cuda.is_available():
        return host
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return host | {"allocated_gib": round(allocated / GIB, 2), "reserved_gib": round(reserved / GIB, 2)}


def describe(model: Any) -> dict[str, Any]:
    """What is trained and what is in 4 bits, to see that all sides do the same."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    four_bit = [name for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"]
    return {
        "trained": sum(p.numel() for p in trained.values()),
        "trained_dtypes": sorted({str(p.dtype) for p in trained.values()}),
        "trained_outside_language_model": sum("language_model" not in name for name in trained),
        "four_bit_layers": len(four_bit),
        "four_bit_in_vision": sum("visual" in name for name in four_bit),
    }
