"""The vision tower on images in groups, without a wait for the GPU in between."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

CHUNK_PATCHES = 4096  # patches that go through the tower at once
KEPT = 64  # layouts

Grid = tuple[int, int, int]


class Layouts:
    """What the tower computes of its images' grids (positions, lengths), made once for each group of grids.

    Lengths stay on the CPU: every layer reads them, and would wait for the GPU.
    """

    def __init__(self, visual: Any, device: torch.device) -> None:
        self.visual, self.device = visual, device
        self.made: OrderedDict[tuple[Grid, ...], dict[str, Any]] = OrderedDict()

    def of(self, grids: Sequence[Grid]) -> dict[str, Any]:
        """Keyword arguments for the tower's forward pass."""
        key = tuple(grids)
        if key not in self.made:
            self.made[key] = self._make(torch.tensor(key))
            if len(self.made) > KEPT:
                self.made.popitem(last=False)
        return self.made[key]

    def _make(self, grids: Any) -> dict[str, Any]:
        visual, given = self.visual, {"grid_thw": grids.to(self.device)}
        if not hasattr(visual, "interpolation_mode"):  # another family's, or an older transformers computes them itself
            return given
        from transformers import vision_utils

        merge = visual.config.spatial_merge_size
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        positions = vision_utils.get_vision_position_ids(grids, merge)
        return given | {
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids),
            "position_ids": positions.to(self.device),
            "interp_indices": indices.to(self.device),
            "interp_weights": weights.to(self.device),
        }


def chunks(grids: Sequence[Grid]) -> list[slice]:
    """The images that go through the tower together: as many in succession as have CHUNK_PATCHES patches, or one."""
    found, first, size = [], 0, 0
    for number, grid in enumerate(grids):
        if number > first and size + math.prod(grid) > CHUNK_PATCHES:
            found.append(slice(first, number))
            first, size = number, 0
        size += math.prod(grid)
    return [*found, slice(first, len(grids))]
