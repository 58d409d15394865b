"""The frozen vision tower on images in groups, without a wait for the GPU in between."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune.compute.graphs import Graphs

CHUNK_PATCHES = 4096  # patches that go through the tower at once
LAYOUTS = 64  # that are remembered, those used last; as many graphs, so that what is common is not captured in turns
COMMON = 4  # times that images of sizes that are remembered went through the tower, after which it is captured for them

Grid = tuple[int, int, int]


class Layouts:
    """What the tower computes of its images' grids (positions, lengths), made once for each group of grids.

    Lengths stay on the CPU: every layer reads them, and would wait for the GPU.
    """

    def __init__(self, visual: Any, device: torch.device) -> None:
        self.visual, self.device = visual, device
        self.made: OrderedDict[tuple[Grid, ...], tuple[dict[str, Any], int]] = OrderedDict()

    def of(self, grids: tuple[Grid, ...]) -> tuple[dict[str, Any], int]:
        """(Keyword arguments for the tower's forward pass, how often they were asked for while they are remembered)."""
        layout, times = self.made.pop(grids) if grids in self.made else (self._make(torch.tensor(grids)), 0)
        self.made[grids] = layout, times + 1
        if len(self.made) > LAYOUTS:
            self.made.popitem(last=False)
        return layout, times + 1

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


class Tower:
    """Features of images: `encode(patches, **layout)` in chunks, as CUDA graphs where the same sizes come again.

    encode: patches of a chunk, on the device, to [1 + D, tokens, hidden].
    """

    def __init__(self, visual: Any, encode: Callable[..., Any], device: torch.device) -> None:
        self.encode, self.device, self.layouts = encode, device, Layouts(visual, device)
        self.graphs = Graphs(device, LAYOUTS)
        self.unit = 0  # patches of a token
        self.patches: Any = None  # [CHUNK_PATCHES, patch dimension], what graphs read, and where they put features
        self.features: Any = None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def __call__(self, patches: Any, grids: Sequence[Grid], room: Any | None = None) -> Any:
        """[1 + D, tokens, hidden] of patches [P, patch dimension] on the CPU, of images of these grids in order.

        room: [1 + D, tokens, hidden], where they are put.
        """
        out, start, filled = room, 0, 0
        for images in chunks(grids):
            end = start + sum(map(math.prod, grids[images]))
            part = self._chunk(patches[start:end], tuple(grids[images]))
            if out is None:
                out = part.new_empty(len(part), len(patches) * part.shape[1] // (end - start), part.shape[2])
            out[:, filled : filled + part.shape[1]] = part
            start, filled = end, filled + part.shape[1]
        return out

    def _chunk(self, patches: Any, grids: tuple[Grid, ...]) -> Any:
        """A chunk's features, until the next chunk's."""
        layout, times = self.layouts.of(grids)
        fits = patches.dtype == torch.uint8 and len(patches) <= CHUNK_PATCHES
        if self.graphs.works and fits and times > COMMON:
            if self.patches is None:
                self._make_room(patches, layout)
            tokens = len(patches) // self.unit
            self.patches[: len(patches)].copy_(patches, non_blocking=True)

            def work() -> None:
                self.features[:, :tokens] = self.encode(self.patches[: len(patches)], **layout)

            self.graphs.run(grids, work, layout)
            return self.features[:, :tokens]
        return self.encode(patches.to(self.device, non_blocking=True), **layout)

    def _make_room(self, patches: Any, layout: dict[str, Any]) -> None:
        """For all graphs, by what the tower makes of a chunk."""
        made = self.encode(patches.to(self.device), **layout)
        self.unit = len(patches) // made.shape[1]
        self.patches = patches.new_zeros(CHUNK_PATCHES, patches.shape[1], device=self.device)
        self.features = made.new_zeros(len(made), CHUNK_PATCHES // self.unit, made.shape[2])
