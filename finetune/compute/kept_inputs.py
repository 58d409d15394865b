"""The layers' inputs between the forward and the backward pass.

On a GPU they wait in host memory, as in Unsloth's checkpointing: each is carried there while the next layer computes,
and back while the layer after it is differentiated.
"""

from __future__ import annotations

import os
from typing import Any

import torch

SHARE = 8  # at most this part of the host's memory is taken
STAY = 2  # last layers whose inputs stay, as they are needed at once


class KeptInputs:
    """Inputs of `layers` layers of up to `numbers` numbers; on a CPU, or where the host is small, they stay."""

    def __init__(self, layers: int, numbers: int, dtype: torch.dtype, device: torch.device) -> None:
        self.away = max(0, layers - STAY) if device.type == "cuda" else 0
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.away * numbers * dtype.itemsize > memory // SHARE:
            self.away = 0
        self.here: dict[int, Any] = {}
        self.leaving: list[tuple[Any, Any]] = []
        self.coming: Any = None
        if self.away:
            self.host = torch.empty(self.away, numbers, dtype=dtype, pin_memory=True)
            self.back = torch.empty(2, numbers, dtype=dtype, device=device)
            self.stream = torch.cuda.Stream(device)

    def put(self, layer: int, x: Any) -> None:
        """Keeps x, which must not change, as the layer's input."""
        self.shape = x.shape
        if layer >= self.away:
            self.here[layer] = x
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.host[layer, : x.numel()].copy_(x.view(-1), non_blocking=True)
            gone = self.stream.record_event()
        self.leaving.append((gone, x))
        if len(self.leaving) > 1:
            self._let_go()

    def turn(self) -> None:
        """To be called between the passes."""
        while self.leaving:
            self._let_go()
        if self.away:
            self._fetch(self.away - 1)

    def take(self, layer: int) -> Any:
        """The layer's input; from the last to the first."""
        if layer >= self.away:
            return self.here.pop(layer)
        torch.cuda.current_stream().wait_event(self.coming)
        if layer:
            self._fetch(layer - 1)
        return self._place(layer)

    def _let_go(self) -> None:
        """Waits until the oldest that is on its way is in host memory: its own may be used again."""
        gone, _ = self.leaving.pop(0)
        torch.cuda.current_stream().wait_event(gone)

    def _fetch(self, layer: int) -> None:
        place = self._place(layer)
        self.stream.wait_stream(torch.cuda.current_stream())  # which used the place for the layer after next
        with torch.cuda.stream(self.stream):
            place.view(-1).copy_(self.host[layer, : place.numel()], non_blocking=True)
            self.coming = self.stream.record_event()

    def _place(self, layer: int) -> Any:
        return self.back[layer % 2, : self.shape.numel()].view(self.shape)
