"""A small Qwen3-VL in LMDeploy's code on the CPU, as LMDeploy runs it and by our budgets: prints how results differ.

Run by test_graphs.py in a process of its own, because Triton's interpreter has to be chosen before LMDeploy is
imported: attention and the cache's kernels are LMDeploy's, interpreted. What works on rows, one by one, is LMDeploy's
code for devices without Triton, on both sides. Instead of CUDA graphs, the computations themselves are called.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import lmdeploy.pytorch.kernels.cuda  # noqa: F401 # loads the modules that are changed below
import torch
import triton.language as tl
from lmdeploy.pytorch.backends.cuda.attention.default import TritonAttentionMetadata
from lmdeploy.pytorch.backends.default.activation import DefaultSiluAndMulImpl
from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl
from lmdeploy.pytorch.backends.default.norm import DefaultRMSNormImpl
from lmdeploy.pytorch.model_inputs import StepContextManager
from lmdeploy.pytorch.models import qwen3_vl
from transformers import AutoConfig

from gateway.engines.startup.levers import prefill_graphs, vision_graphs

CPU = torch.device("cpu")
IMAGE, BLOCKS, BLOCK_TOKENS = 9, 12, 64  # token, and the cache's size

Grids = list[tuple[int, int]]


def interpret_kernels() -> None:
    """What the interpreter lacks: functions of `tl` that were taken before it replaced them, and a GPU's figures."""
    kernel = sys.modules["lmdeploy.pytorch.kernels.cuda.flashattention"]
    kernel.tl_log2 = lambda x: math.log2(x) if isinstance(x, float) else tl.log2(x)  # type: ignore[attr-defined]
    kernel.tl_exp2 = lambda x: tl.exp2(x)  # type: ignore[attr-defined]
    kernel.get_device_props = lambda *_: {"compute_capability": (9, 0)}  # type: ignore[attr-defined]


def small_model(folder: Path) -> Any:
    torch.manual_seed(0)
    config, contexts = AutoConfig.from_pretrained(folder), StepContextManager()
    config.text_config.num_hidden_layers, config.vision_config.depth = 2, 2
    config.vision_config.deepstack_visual_indexes = [0]
    model = qwen3_vl.Qwen3VLForConditionalGeneration(config, contexts, dtype=torch.float32, device=CPU)
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.05) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    rows = {"RMSNorm": DefaultRMSNormImpl, "SiluAndMul": lambda *_: DefaultSiluAndMulImpl(inplace=True)}
    for module in model.modules():
        name = type(module).__name__
        if name == "ApplyRotaryEmb":
            module.impl = DefaultApplyRotaryEmbImpl()
        elif name in rows:
            module.impl = rows[name](None, getattr(module, "eps", None))
    return model


def empty_cache(model: Any) -> list[tuple[torch.Tensor, ...]]:
    text = model.config.text_config
    shape = BLOCKS, BLOCK_TOKENS, text.num_key_value_heads, text.head_dim
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(text.num_hidden_layers)]


def prefill(model: Any, grids: Grids, words: int, cached: int, cache: Any) -> dict[str, Any]:
    """Inputs of a prompt for each picture, of `words` tokens and the picture's, after `cached` tokens in the cache."""
    random = torch.Generator().manual_seed(1)
    vision, pixels = model.config.vision_config, model.visual.patch_embed.proj.weight[0].numel()
    patches = sum(rows * columns for rows, columns in grids)
    counts = [rows * columns // 4 for rows, columns in grids]
    ids = torch.cat([torch.tensor([1, 2, *[IMAGE] * count, *range(20, 18 + words)]) for count in counts])
    lengths = torch.tensor([words + count for count in counts])
    ends = torch.nn.functional.pad(lengths.cumsum(0).int(), (1, 0))
    blocks = torch.randperm(BLOCKS, generator=random).view(len(grids), -1).int()
    angles = torch.rand(patches, vision.hidden_size // vision.num_heads, generator=random) * 6
    metadata = TritonAttentionMetadata(
        is_decoding=False,
        block_offsets=blocks,
        q_start_loc=ends[:-1].long(),
        q_seqlens=lengths,
        kv_start_loc=ends[:-1].long() + cached * torch.arange(len(grids)),
        kv_seqlens=lengths + cached,
        kv_flatten_size=int(ends[-1]) + cached * len(grids),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends + cached * torch.arange(len(grids) + 1).int(),
        max_kv_seqlen=int(lengths.max()) + cached,
        max_q_seqlen=int(lengths.max()),
    )
    return {
        "input_ids": ids[None],
        "position_ids": None,
        "past_key_values": cache,
        "attn_metadata": metadata,
        "inputs_embeds": None,
        "mrope_position_ids": torch.randint(0, 50, (3, len(ids)), generator=random),
        "pixel_values": torch.randn(patches, pixels, generator=random),
        "vis_cu_seqlens": torch.tensor([rows * columns for rows, columns in grids]).cumsum(0).int(),
        "vis_pos_emb": (angles.cos(), angles.sin()),
        "multimodal_mask": ids[None] == IMAGE,
        "grid_thw": torch.tensor([[1, rows, columns] for rows, columns in grids]),
        "pos_embeds": torch.randn(patches, vision.hidden_size, generator=random),
    }


CASES: dict[str, dict[str, Any]] = {
    "one picture": {"grids": [(8, 8)], "words": 6},
    "pictures of several sizes, one longer than a tile": {"grids": [(4, 6), (12, 12), (2, 2)], "words": 5},
    "a prompt longer than a tile, after a shorter one": {"grids": [(2, 2), (4, 2)], "words": 140},
    "a prompt of which a part is in the cache": {"grids": [(4, 4)], "words": 5, "cached": 64},
    "more patches than the largest budget": {"grids": [(24, 24)], "words": 5},
    "more tokens than the largest budget": {"grids": [(2, 2)], "words": 400},
}


def compare(model: Any, grids: Grids, words: int, cached: int = 0) -> dict[str, Any]:
    visual, replayed = model.visual, []

    def call(compute: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            replayed.append(compute.args[0])  # type: ignore[attr-defined] # the budget
            compute()

        return replay

    def run(cache: Any) -> list[torch.Tensor]:
        inputs = prefill(model, grids, words, cached, cache)
        tower = [inputs[name] for name in ("pixel_values", "vis_cu_seqlens", "vis_pos_emb", "pos_embeds")]
        features, deepstack = visual(*tower)
        result = [features.clone(), *(of_layer.clone() for of_layer in deepstack)]
        return [*result, model(**inputs).clone(), *(tensor for layer in cache for tensor in layer)]

    expected = run(empty_cache(model))
    cache = empty_cache(model)
    vision_graphs.VisionGraphs(visual).capture(call)
    prefill_graphs.PrefillGraphs(model, cache).capture(call)
    for _ in range(2):  # what a call leaves in the buffers changes nothing in the next one
        found = run(cache)
    del model.forward, visual.forward
    differences = [(one - other).abs().max().item() for one, other in zip(expected, found, strict=True)]
    return {"difference": max(differences), "replayed": replayed, "largest": max(x.abs().max().item() for x in found)}


def main(folder: Path) -> None:
    interpret_kernels()
    vision_graphs.BUDGETS, prefill_graphs.BUDGETS = (64, 256), (32, 128, 320)  # type: ignore[assignment]
    model = small_model(folder)
    with torch.inference_mode(), model.ctx_mgr.context(SimpleNamespace(is_chunk=False)):
        print(json.dumps({name: compare(model, **case) for name, case in CASES.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
