"""What a Qwen3-VL's vision tower is given beside pixels is made without waiting for the GPU, and once for each size.

LMDeploy moves a picture's size to the GPU and fetches it back, which waits for the step before, and computes position
embeddings for every picture anew. Here sizes stay in the process, and the embeddings of sizes that come again are
kept. It also takes the pixels' bytes that `pixel_bytes` sends.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.models import qwen3_vl
from lmdeploy.pytorch.multimodal.data_type import MultiModalData
from lmdeploy.vl.constants import Modality

from gateway.engines.startup.levers.pixel_table import from_bytes, look_up

MODEL_TYPE = "qwen3_vl"  # of config.json; others inherit from its classes and read sizes in another way
KEPT_PATCHES = 32768  # of which embeddings are kept: 72 MB of GPU memory for a tower 1024 wide

Grid = tuple[int, int, int]  # frames, rows and columns of patches


class PositionCache:
    """Position embeddings by grid, the least used forgotten first."""

    def __init__(self, limit: int = KEPT_PATCHES) -> None:
        self._kept: OrderedDict[Grid, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = OrderedDict()
        self._limit = limit
        self._patches = 0

    def get(self, visual: Any, grid: Grid, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cosines, sines and position embeddings of a picture, each [patches, width]."""
        if grid in self._kept:
            self._kept.move_to_end(grid)
            return self._kept[grid]
        angles = rotary_angles(visual, grid).repeat(1, 2)
        made = (angles.cos().to(dtype), angles.sin().to(dtype), visual.fast_pos_embed_interpolate([grid]))
        self._kept[grid] = made
        self._patches += grid[0] * grid[1] * grid[2]
        while self._patches > self._limit and len(self._kept) > 1:
            frames, rows, columns = self._kept.popitem(last=False)[0]
            self._patches -= frames * rows * columns
        return made


def rotary_angles(visual: Any, grid: Grid) -> torch.Tensor:
    """[patches, head size / 2]: as Qwen3VLVisionModel.rot_pos_emb's for one picture."""
    frames, rows, columns = grid
    places = visual.rot_pos_ids(rows, columns, visual.spatial_merge_size)
    full = visual.rotary_pos_emb(max(rows, columns))
    return full[places.to(full.device)].flatten(1).repeat(frames, 1)


@lru_cache(maxsize=1024)
def mrope_positions(grid: Grid) -> np.ndarray:
    positions: np.ndarray = qwen3_vl.Qwen3VLInputProcessor._get_multimodal_pos_ids(grid)
    return positions


def keeping_grid(original: Any) -> Any:
    """Qwen3VLInputProcessor._make_image_mm_data whose grid is no tensor, so that it does not go to the GPU."""

    def _make_image_mm_data(self: Any, input_mm: dict[str, Any]) -> MultiModalData:
        if self.config.model_type != MODEL_TYPE:
            stock: MultiModalData = original(self, input_mm)
            return stock
        grid = input_mm["image_grid_thw"]
        grid = tuple(grid.flatten().tolist() if isinstance(grid, torch.Tensor) else grid)
        start, end = input_mm["offset"]
        return MultiModalData(
            modality=Modality.IMAGE,
            data=input_mm["pixel_values"],
            start=start,
            end=end,
            mrope_pos_ids=mrope_positions(grid),
            meta={"grid_thw": grid, "image_token_id": input_mm["image_token_id"], "table": input_mm.get("table")},
        )

    return _make_image_mm_data


def preparing(original: Any) -> Any:
    """Qwen3VLForConditionalGeneration.prepare_inputs_for_generation without a wait for the GPU."""

    def prepare_inputs_for_generation(
        self: Any, past_key_values: Any, inputs_embeds: Any = None, context: Any = None
    ) -> dict[str, Any]:
        multimodals = context.input_multimodals
        items = [item for one in multimodals or () for item in one.get("mm_data", ())]
        if not items or any(not isinstance(item.meta.get("grid_thw"), tuple) for item in items):
            prepared: dict[str, Any] = original(self, past_key_values, inputs_embeds, context)
            return prepared
        context.input_multimodals = None
        try:
            prepared = original(self, past_key_values, inputs_embeds, context)
        finally:
            context.input_multimodals = multimodals
        return prepared | vision_inputs(self, context.input_ids, items)

    return prepare_inputs_for_generation


def vision_inputs(model: Any, input_ids: torch.Tensor, items: list[MultiModalData]) -> dict[str, Any]:
    """What the model's forward takes of pictures. Sizes as in Qwen3VLForConditionalGeneration."""
    visual = model.visual
    weight = visual.patch_embed.proj.weight
    cache: PositionCache = model.__dict__.setdefault("_lensmith_positions", PositionCache())
    grids = [item.meta["grid_thw"] for item in items]
    cosines, sines, positions = zip(*(cache.get(visual, grid, weight.dtype) for grid in grids), strict=True)
    lengths = [rows * columns for frames, rows, columns in grids for _ in range(frames)]
    ends = torch.tensor(np.cumsum(lengths), dtype=torch.int32)
    if weight.is_cuda:
        ends = ends.pin_memory()
    return {
        "pixel_values": pixel_values(items, weight),
        "multimodal_mask": model.get_multimodal_mask(input_ids, items),
        "grid_thw": torch.tensor(grids),
        "vis_cu_seqlens": ends.to(weight.device, non_blocking=True),
        "vis_pos_emb": (torch.cat(cosines), torch.cat(sines)),
        "pos_embeds": torch.cat(positions),
    }


def pixel_values(items: list[MultiModalData], weight: torch.Tensor) -> torch.Tensor:
    """The processor's numbers of all pictures, [patches, 3 * frames * patch * patch]; `weight` of the first layer."""
    pixels = torch.cat([item.data for item in items])
    if pixels.dtype != torch.uint8:
        return pixels
    return look_up(pixels, device_table(items[0].meta["table"], weight.device, weight.dtype), weight.shape[2])


@lru_cache(maxsize=4)
def device_table(data: bytes, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return from_bytes(data).to(device, dtype)


def pull() -> None:
    processor, model = qwen3_vl.Qwen3VLInputProcessor, qwen3_vl.Qwen3VLForConditionalGeneration
    processor._make_image_mm_data = keeping_grid(processor._make_image_mm_data)
    model.prepare_inputs_for_generation = preparing(model.prepare_inputs_for_generation)
