"""The language model's part of a Qwen3-VL's prefill with pictures as CUDA graphs: one launch in place of 400.

LMDeploy captures decode steps only; a prefill with pictures is launched kernel by kernel, which takes longer than the
GPU's work where prompts are short. Here prompts are padded with tokens to one of a few budgets. Those belong to no
sequence, so nothing is written to the cache for them. Only whole prompts of which nothing is in the cache yet are
taken, within the largest budget: their keys and values are those just computed, and are not gathered from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lmdeploy.messages import QuantPolicy
from lmdeploy.pytorch.backends.cuda.attention.default import TritonAttentionImpl

from gateway.engines.startup.levers.attention_tiles import ROWS_OF_SLOT, TILE, Tiles, cut
from gateway.engines.startup.levers.captured_calls import (
    Capture,
    CapturedCalls,
    capture_at_warmup,
    cuda_graph,
    within,
)

# Tokens. 640 is a picture of 768x768 and a question.
BUDGETS = (128, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560)
LIMIT = 160 * 2**20  # bytes of intermediate results


class PrefillGraphs:
    """The buffers and graphs of one model. `cache`: of each layer keys and values, [blocks, tokens, heads, width]."""

    def __init__(self, model: Any, cache: Any, budgets: Sequence[int] = BUDGETS) -> None:
        self._model, self._original, self._cache = model, model.forward, cache
        text, vision = model.config.text_config, model.config.vision_config
        weight = model.language_model.norm.weight
        heads = text.num_attention_heads + 2 * text.num_key_value_heads
        numbers = 4 * text.hidden_size + 2 * max(heads * text.head_dim, text.intermediate_size)  # of a row at once
        self._calls = CapturedCalls(self._compute, within(budgets, weight.element_size() * numbers, LIMIT))
        tokens, slots = self._calls.largest, self._calls.largest // ROWS_OF_SLOT
        block_tokens = cache[0][0].size(1)

        def integers(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=weight.device)

        self._ids, self._positions = integers(tokens).long(), integers(3, tokens).long()
        self._pictured = integers(tokens).bool()  # the tokens that stand for pictures
        self._lengths, self._blocks = integers(slots), integers(slots, -(-tokens // block_tokens))
        layers = 1 + len(vision.deepstack_visual_indexes)
        self._features = weight.new_zeros(
            layers, tokens, text.hidden_size, dtype=model.language_model.norm.weight.dtype
        )
        self._output = self._features.new_zeros(1, tokens, text.hidden_size)

    def capture(self, capture: Capture) -> None:
        self._calls.capture(capture)
        self._model.forward = self.forward

    def forward(self, **inputs: Any) -> torch.Tensor:
        """As Qwen3VLForConditionalGeneration's. The result is overwritten by the next call, on the same stream."""
        budget = self._budget(inputs)
        if budget is None:
            result: torch.Tensor = self._original(**inputs)
            return result
        dtype, metadata = self._features.dtype, inputs["attn_metadata"]
        tokens, sequences = inputs["input_ids"].size(1), len(metadata.q_seqlens)
        features, deepstack = self._model.visual(
            inputs["pixel_values"].to(dtype),
            cu_seqlens=inputs["vis_cu_seqlens"],
            rotary_pos_emb=tuple(table.to(dtype) for table in inputs["vis_pos_emb"]),
            pos_embeds=inputs["pos_embeds"],
        )
        for buffer, of_layer in zip(self._features, (features, *deepstack), strict=True):
            buffer[: len(of_layer)].copy_(of_layer)
        self._ids[:tokens].copy_(inputs["input_ids"][0])
        self._pictured[:tokens].copy_(inputs["multimodal_mask"][0])
        self._positions[:, :tokens].copy_(inputs["mrope_position_ids"])
        self._lengths.zero_()
        self._lengths[:sequences].copy_(metadata.q_seqlens)
        columns = min(metadata.block_offsets.size(1), self._blocks.size(1))
        self._blocks[:sequences, :columns].copy_(metadata.block_offsets[:, :columns])
        self._calls.run(budget)
        return self._output[:, :tokens]

    def _budget(self, inputs: dict[str, Any]) -> int | None:
        """Of a whole prefill with pictures of which nothing is in the cache, and that is not too large."""
        metadata, tokens = inputs["attn_metadata"], inputs["input_ids"].size(1)
        if inputs.get("pixel_values") is None or inputs.get("inputs_embeds") is not None:
            return None
        if self._model.ctx_mgr.current_context().is_chunk or metadata.kv_flatten_size != tokens:
            return None
        return self._calls.budget(tokens, len(metadata.q_seqlens))

    def _compute(self, budget: int) -> None:
        language, slots = self._model.language_model, budget // ROWS_OF_SLOT
        tiles = cut(self._lengths[:slots], slots)
        blocks = self._blocks[tiles.sequence]
        pictured = self._pictured[:budget, None]
        row = (self._pictured[:budget].cumsum(0) - 1).clamp(min=0)  # of the features, for each token
        embedded = language.embed_tokens(self._ids[:budget])
        hidden = torch.where(pictured, self._features[0][row], embedded)
        cosines, sines = language.rotary_emb(hidden[None], self._positions[:, None, :budget])
        rotary = cosines[0], sines[0]
        residual = None
        for place, layer in enumerate(language.layers):
            if residual is None:
                hidden, residual = layer.input_layernorm(hidden), hidden
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            hidden = attention(layer.self_attn, hidden, rotary, self._cache[place], tiles, blocks)
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = layer.mlp(hidden)
            if place + 1 < len(self._features):
                hidden = hidden + residual
                hidden += self._features[place + 1][row].masked_fill(~pictured, 0)
                residual = None
        self._output[0, :budget].copy_(language.norm(hidden, residual)[0])


def attention(
    layer: Any,
    hidden: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cache: Any,
    tiles: Tiles,
    blocks: torch.Tensor,
) -> torch.Tensor:
    """As Qwen3Attention's, [tokens, width], with sequences in tiles; `blocks` of the cache, [tiles, blocks]."""
    query, key, value = layer.qkv_proj.split_qkv(layer.qkv_proj(hidden))
    query, key = layer.apply_rotary_pos_emb(layer.q_norm(query), layer.k_norm(key), *rotary, inplace=True)
    kernels = layer.attn_fwd.impl
    kernels.fill_kv_cache(
        key,
        value,
        cache[0],
        cache[1],
        tiles.start,
        tiles.rows,
        kv_seq_length=tiles.keys_so_far,
        max_q_seq_length=TILE,
        block_offsets=blocks,
    )
    attended = kernels.flash_attention_fwd(
        query,
        key,
        value,
        q_start_loc=tiles.start,
        q_seqlens=tiles.rows,
        kv_start_loc=tiles.sequence_start,
        kv_seqlens=tiles.keys_so_far,
        max_seqlen_q=TILE,
        softmax_scale=kernels.scale,
        causal=True,
        kv_layout="shd",
    )
    projected: torch.Tensor = layer.o_proj(attended.flatten(1))
    return projected


def plain(model: Any) -> bool:
    """Whether every layer's attention is LMDeploy's own kernel, without what `attention` above leaves out."""
    kernels = [layer.self_attn.attn_fwd.impl for layer in model.language_model.layers]
    return all(
        type(kernel) is TritonAttentionImpl
        and kernel.sliding_window in (None, -1, (-1, -1))
        and kernel.logit_softcapping <= 0
        and kernel.alibi_slopes is None
        for kernel in kernels
    )


def capture_prefill(owner: Any, model: Any) -> None:
    """Raises ValueError where LMDeploy does with keys and values what `attention` leaves out."""
    if not plain(model) or owner.cache_config.quant_policy != QuantPolicy.NONE:
        raise ValueError("they are for LMDeploy's own attention kernels and a cache of 16 bit")
    PrefillGraphs(model, owner.cache_engine.gpu_cache).capture(cuda_graph)


def pull() -> None:
    capture_at_warmup(capture_prefill, "prefill")
