"""A Qwen3-VL's vision tower as CUDA graphs: one launch in place of 350, which take longer than the GPU's work for them.

Patches are padded with rows to one of a few budgets. Those belong to no sequence of the attention, so they change
nothing and cost little. More patches than the largest budget run as LMDeploy does it. The same kernels compute the same
features; where the number of patches is no budget, matrix products of other sizes round in other ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gateway.engines.startup.levers.attention_tiles import ROWS_OF_SLOT, TILE, Tiles, cut
from gateway.engines.startup.levers.captured_calls import (
    Capture,
    CapturedCalls,
    capture_at_warmup,
    cuda_graph,
    within,
)

# Patches. 2304 and 4608 are one and two pictures of 768x768.
BUDGETS = (*range(256, 2561, 256), *range(3072, 4609, 512), *range(5120, 8193, 1024))
LIMIT = 160 * 2**20  # bytes of intermediate results


class VisionGraphs:
    """The buffers and graphs of one vision tower."""

    def __init__(self, visual: Any, budgets: Sequence[int] = BUDGETS) -> None:
        self._visual, self._original = visual, visual.forward
        weight = visual.patch_embed.proj.weight
        hidden, inner = weight.shape[0], visual.config.intermediate_size
        numbers = 3 * hidden + 2 * inner  # of a row at once
        self._calls = CapturedCalls(self._compute, within(budgets, weight.element_size() * numbers, LIMIT))
        rows = self._calls.largest
        self._merged = visual.spatial_merge_size**2
        head = hidden // visual.config.num_heads
        features = 1 + len(visual.deepstack_merger_list), rows // self._merged, visual.config.out_hidden_size
        self._embedded = weight.new_zeros(rows, hidden)
        self._cosines, self._sines = weight.new_zeros(rows, head), weight.new_zeros(rows, head)
        self._ends = torch.zeros(rows // ROWS_OF_SLOT, dtype=torch.int32, device=weight.device)
        self._features = weight.new_zeros(features)

    def capture(self, capture: Capture) -> None:
        self._calls.capture(capture)
        self._visual.forward = self.forward

    def forward(
        self, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, rotary_pos_emb: Any, pos_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As Qwen3VLVisionModel's. The result is overwritten by the next call, on the same stream."""
        patches, sequences = len(hidden_states), len(cu_seqlens)
        budget = self._calls.budget(patches, sequences)
        if budget is None:
            result: tuple[torch.Tensor, list[torch.Tensor]]
            result = self._original(hidden_states, cu_seqlens, rotary_pos_emb, pos_embeds)
            return result
        torch.add(self._visual.patch_embed(hidden_states), pos_embeds, out=self._embedded[:patches])
        self._cosines[:patches].copy_(rotary_pos_emb[0])
        self._sines[:patches].copy_(rotary_pos_emb[1])
        self._ends.fill_(patches)
        self._ends[:sequences].copy_(cu_seqlens)
        self._calls.run(budget)
        features = self._features[:, : patches // self._merged]
        return features[0], list(features[1:])

    def _compute(self, budget: int) -> None:
        visual, slots = self._visual, budget // ROWS_OF_SLOT
        lengths = self._ends[:slots].diff(prepend=self._ends.new_zeros(1))
        tiles = cut(lengths, slots)
        rotary = self._cosines[:budget], self._sines[:budget]
        hidden = self._embedded[:budget]
        deepstack = {layer: place + 1 for place, layer in enumerate(visual.deepstack_visual_indexes)}
        merged = budget // self._merged
        for layer, block in enumerate(visual.blocks):
            hidden = hidden + attention(block.attn, block.norm1(hidden), rotary, tiles)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if layer in deepstack:
                merger = visual.deepstack_merger_list[deepstack[layer] - 1]
                self._features[deepstack[layer], :merged].copy_(merger(hidden))
        self._features[0, :merged].copy_(visual.merger(hidden))


def attention(
    layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], tiles: Tiles
) -> torch.Tensor:
    """As Qwen2_5_VLVisionAttention's, [patches, width], with sequences in tiles."""
    query, key, value = layer.qkv.split_qkv(layer.qkv(hidden))
    query, key = layer.apply_rotary_pos_emb(query, key, *rotary)
    attended = layer.attention(
        query,
        key,
        value,
        q_start_loc=tiles.start,
        q_seqlens=tiles.rows,
        kv_start_loc=tiles.sequence_start,
        kv_seqlens=tiles.keys,
        max_q_seqlen=TILE,
    )
    projected: torch.Tensor = layer.proj(attended.flatten(1))
    return projected


def pull() -> None:
    capture_at_warmup(lambda _, model: VisionGraphs(model.visual).capture(cuda_graph), "vision tower")
