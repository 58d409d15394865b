"""Random numbers that a layer draws once when it runs forward and again, the same, when its backward pass repeats it.

Each layer has its own seed, so that neither the order of layers nor a CUDA graph changes what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class LayerDraws:
    """Seeds for the dropout of `layers` layers on a device, new ones for every micro-batch.

    In a CUDA graph a generator's seed is read at each replay. A graph knows a state that it registered by how far the
    graph advances it, so that the two passes of a layer have a state each.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self.device, self.seeds = device, [0] * layers
        self.states: list[tuple[Any, Any]] = []
        if device.type == "cuda":
            self.states = [(torch.Generator(device), torch.Generator(device)) for _ in range(layers)]

    def reseed(self) -> None:
        """Draws every layer's seed from torch's generator of the CPU, whose state is in the checkpoints."""
        self.seeds = torch.randint(2**62, (len(self.seeds),)).tolist()
        for seed, pair in zip(self.seeds, self.states, strict=False):
            for state in pair:
                state.manual_seed(seed)

    @property
    def generators(self) -> list[Any]:
        """What a graph must know of, in which the layers draw."""
        return [state for pair in self.states for state in pair]

    @contextmanager
    def drawn(self, layer: int, again: bool) -> Iterator[None]:
        """What draws from the device's default generator meanwhile draws the layer's numbers.

        again: whether the layer is computed for its backward pass.
        """
        if not self.states:
            before = torch.get_rng_state()
            torch.manual_seed(self.seeds[layer])
            try:
                yield
            finally:
                torch.set_rng_state(before)
            return
        default = torch.cuda.default_generators[self.device.index or 0]
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self.states[layer][again])
        try:
            yield
        finally:
            default.graphsafe_set_state(before)
