"""A small Qwen3-VL in LMDeploy's own code, and its prefills: as LMDeploy runs them and by our budgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lmdeploy.pytorch.backends.cuda.attention.default import TritonAttentionMetadata
from lmdeploy.pytorch.model_inputs import StepContextManager
from lmdeploy.pytorch.models import qwen3_vl
from transformers import AutoConfig

from gateway.engines.startup.levers.captured_calls import Capture
from gateway.engines.startup.levers.prefill_graphs import PrefillGraphs
from gateway.engines.startup.levers.vision_graphs import VisionGraphs

IMAGE, BLOCKS, BLOCK_TOKENS = 9, 12, 64  # token, and the cache's size
PATCHES, TOKENS = (64, 256), (32, 128, 320)  # budgets

Grids = list[tuple[int, int]]


def small_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Of two layers, with random weights. `folder` has its config.json."""
    torch.manual_seed(0)
    config, contexts = AutoConfig.from_pretrained(folder), StepContextManager()
    config.text_config.num_hidden_layers, config.vision_config.depth = 2, 2
    config.vision_config.deepstack_visual_indexes = [0]
    model = qwen3_vl.Qwen3VLForConditionalGeneration(config, contexts, dtype=dtype, device=device)
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.05) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


def empty_cache(model: Any) -> list[tuple[torch.Tensor, ...]]:
    text = model.config.text_config
    shape = BLOCKS, BLOCK_TOKENS, text.num_key_value_heads, text.head_dim
    weight = model.language_model.norm.weight
    return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(text.num_hidden_layers)]


def prefill(model: Any, grids: Grids, words: int, cached: int, cache: Any) -> dict[str, Any]:
    """Inputs of a prompt for each picture, of `words` tokens and the picture's, after `cached` tokens in the cache."""
    random = torch.Generator().manual_seed(1)
    vision, weight = model.config.vision_config, model.visual.patch_embed.proj.weight
    patches = sum(rows * columns for rows, columns in grids)
    counts = [rows * columns // 4 for rows, columns in grids]
    ids = torch.cat([torch.tensor([1, 2, *[IMAGE] * count, *range(20, 18 + words)]) for count in counts])
    lengths = torch.tensor([words + count for count in counts])
    ends = torch.nn.functional.pad(lengths.cumsum(0).int(), (1, 0))
    longest, earlier = int(lengths.max()) + cached, cached * torch.arange(len(grids) + 1)
    blocks = torch.randperm(BLOCKS, generator=random).view(len(grids), -1).int()
    angles = torch.rand(patches, vision.hidden_size // vision.num_heads, generator=random) * 6
    metadata = TritonAttentionMetadata(
        is_decoding=False,
        block_offsets=blocks.to(weight.device),
        q_start_loc=ends[:-1].long().to(weight.device),
        q_seqlens=lengths.to(weight.device),
        kv_start_loc=(ends + earlier)[:-1].to(weight.device),
        kv_seqlens=(lengths + cached).to(weight.device),
        kv_flatten_size=len(ids) + cached * len(grids),
        cu_seqlens_q=ends.to(weight.device),
        cu_seqlens_k=(ends + earlier).int().to(weight.device),
        max_kv_seqlen=longest,
        max_q_seqlen=longest - cached,
    )
    return {
        "input_ids": ids[None].to(weight.device),
        "position_ids": None,
        "past_key_values": cache,
        "attn_metadata": metadata,
        "inputs_embeds": None,
        "mrope_position_ids": torch.randint(0, 50, (3, len(ids)), generator=random).to(weight.device),
        "pixel_values": torch.randn(patches, weight[0].numel(), generator=random).to(weight),
        "vis_cu_seqlens": torch.tensor([rows * columns for rows, columns in grids]).cumsum(0).int().to(weight.device),
        "vis_pos_emb": (angles.cos().to(weight), angles.sin().to(weight)),
        "multimodal_mask": (ids[None] == IMAGE).to(weight.device),
        "grid_thw": torch.tensor([[1, rows, columns] for rows, columns in grids]),
        "pos_embeds": torch.randn(patches, vision.hidden_size, generator=random).to(weight),
    }


CASES: dict[str, dict[str, Any]] = {
    "one picture": {"grids": [(8, 8)], "words": 6},
    "pictures of several sizes, one longer than a tile": {"grids": [(4, 6), (12, 12), (2, 2)], "words": 5},
    "a prompt longer than a tile, after a shorter one": {"grids": [(2, 2), (4, 2)], "words": 140},
    "a prompt of which a part is in the cache": {"grids": [(4, 4)], "words": 5, "cached": 64},
    "more patches than the largest budget": {"grids": [(24, 24)], "words": 5},
    "more tokens than the largest budget": {"grids": [(2, 2)], "words": 400},
}


def compare(model: Any, capture: Capture, grids: Grids, words: int, cached: int = 0) -> dict[str, Any]:
    """How features, hidden states and cache differ at most by budgets, with which of them, and the largest number.

    `features`: how the vision tower's results alone differ.
    """
    visual, replayed = model.visual, []

    def watched(compute: Callable[[], None]) -> Callable[[], None]:
        launch, (budget,) = capture(compute), compute.args  # type: ignore[attr-defined] # of a functools.partial

        def replay() -> None:
            replayed.append(budget)
            launch()

        return replay

    def run(cache: Any) -> list[torch.Tensor]:
        inputs = prefill(model, grids, words, cached, cache)
        tower = [inputs[name] for name in ("pixel_values", "vis_cu_seqlens", "vis_pos_emb", "pos_embeds")]
        features, deepstack = visual(*tower)
        result = [features.clone(), *(of_layer.clone() for of_layer in deepstack)]
        return [*result, model(**inputs).clone(), *(tensor for layer in cache for tensor in layer)]

    with torch.inference_mode(), model.ctx_mgr.context(SimpleNamespace(is_chunk=False)):
        expected = run(empty_cache(model))
        cache = empty_cache(model)
        VisionGraphs(visual, PATCHES).capture(watched)
        PrefillGraphs(model, cache, TOKENS).capture(watched)
        for _ in range(2):  # what a call leaves in the buffers changes nothing in the next one
            found = run(cache)
    del model.forward, visual.forward
    differences = [(one - other).abs().max().item() for one, other in zip(expected, found, strict=True)]
    return {
        "difference": max(differences),
        "features": max(differences[: len(model.visual.deepstack_merger_list) + 1]),
        "replayed": replayed,
        "largest": max(tensor.abs().max().item() for tensor in found),
    }
