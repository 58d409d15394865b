"""The frozen vision tower without waiting for the GPU: what it needs to know of its images' grids is made beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

CHUNK_PATCHES = 5120  # patches that go through the tower at once

Grid = tuple[int, int, int]


def layout(visual: Any, grids: Sequence[Grid], device: Any) -> dict[str, Any]:
    """Keyword arguments for the tower in place of what it would compute of the grids; {} for a transformers without.

    Lengths stay on the CPU, where the tower reads them for each layer.
    """
    try:
        from transformers import vision_utils
    except ImportError:
        return {}
    given = torch.tensor(grids)
    merge = visual.config.spatial_merge_size
    made: dict[str, Any] = {"cu_seqlens": vision_utils.get_vision_cu_seqlens(given)}
    made["position_ids"] = vision_utils.get_vision_position_ids(given, merge).to(device)
    indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        given,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    return made | {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}


def chunks(grids: Sequence[Grid], patches: int = CHUNK_PATCHES) -> list[tuple[int, int]]:
    """(first image, image after the last) of the images that go through the tower together."""
    found, first, size = [], 0, 0
    for number, grid in enumerate(grids):
        if number > first and size + math.prod(grid) > patches:
            found.append((first, number))
            first, size = number, 0
        size += math.prod(grid)
    return [*found, (first, len(grids))]


class Tower:
    """Features of images in chunks, each captured as a CUDA graph when its grids come again."""

    def __init__(self, model: Any, capture: bool, pool: Any = None, mean: Any = None, std: Any = None) -> None:
        from finetune.families.forward import encode_images

        self.model, self.visual, self.capture = model, model.model.visual, capture
        self.encode = encode_images
        self.device = next(self.visual.parameters()).device
        self.layouts: dict[Any, Any] = {}
        self.graphs: dict[Any, Any] = {}
        self.seen: dict[Any, int] = {}
        self.pool, self.mean, self.std = pool, mean, std

    @torch.no_grad()
    def features(self, pixels: Any, grids: Sequence[Grid], into: Any = None) -> Any:
        """[1 + D, tokens, hidden]. pixels: [patches, patch dimension] on the CPU, pinned."""
        out, at, patch = [], 0, 0
        for first, last in chunks(grids):
            own = tuple(grids[first:last])
            size = sum(map(math.prod, own))
            piece = pixels[patch : patch + size]
            patch += size
            out.append(self._chunk(piece, own))
        return torch.cat(out, dim=1)

    def _normal(self, piece: Any) -> Any:
        if piece.dtype == torch.uint8:
            piece = (piece.float() - self.mean) / self.std
        return piece.to(self.visual.dtype)

    def _run(self, pixels: Any, grids: Any) -> Any:
        if grids not in self.layouts:
            made = layout(self.visual, grids, self.device)
            self.layouts[grids] = (torch.tensor(grids).to(self.device), made)
        given, made = self.layouts[grids]
        visual = self.visual
        out = visual(self._normal(pixels), grid_thw=given, **made)
        return torch.stack([out.pooler_output, *out.deepstack_features])

    def _chunk(self, piece: Any, grids: Any) -> Any:
        if self.capture and grids in self.graphs:
            graph, static, out = self.graphs[grids]
            static.copy_(piece, non_blocking=True)
            graph.replay()
            return out.clone()
        if self.capture and self.seen.get(grids, 0) >= 2:
            static = piece.to(self.device)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                out = self._run(static, grids)
            self.graphs[grids] = (graph, static, out)
            graph.replay()
            return out.clone()
        self.seen[grids] = self.seen.get(grids, 0) + 1
        return self._run(piece.to(self.device, non_blocking=True), grids)
