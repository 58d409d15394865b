"""LMDeploy's own arithmetic for a GPU's memory, from config.json and tensor headers alone.

Source: lmdeploy 0.18.0, pytorch/engine/executor/base.py (`_get_runtime_size`, `_update_num_gpu_blocks`),
pytorch/engine/cache_engine/schema.py and layout.py, pytorch/configurations/. Sizes are bytes, counts are of one rank.
What is not in those files was measured: benchmarks/lmdeploy_kv.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gateway.planning.gpu import MIB, Gpu
from modelfiles.folder.files import positive_int
from modelfiles.folder.model_folder import ModelFolder

BLOCK_TOKENS = 64  # LMDeploy's --cache-block-seq-len
ALIGNMENT = 256  # of one layer's keys, and of its values, in a block
DTYPE_BYTES = 2  # it computes and caches in float16 or bfloat16
RESERVED_BLOCKS = 2  # one holds padding, and the longest session leaves one free
MIN_BLOCKS = 16  # with fewer it halves the prefill budget; with 2 or none it gives up

# What a process holds on the card besides tensors once it sizes the cache: CUDA's context and kernels. Measured on an
# H200 with PyTorch 2.11; it grows with the card's multiprocessors, so smaller cards have some more memory than planned.
CONTEXT = 722_337_792
# What PyTorch's allocator holds beyond the weights: parts of its 20 MiB segments. Measured with Qwen3-VL-2B.
SLACK, SLACK_SHARE = 96 * MIB, 0.03
LATE_KERNELS = 256 * MIB  # loaded, and workspaces allocated, when the first requests come; measured
GRAPHS = 256 * MIB  # CUDA graphs and their buffers for up to 256 answers; measured
# And those of pictures (gateway/engines/startup/levers), for one architecture on one card; 280 MiB were measured.
PICTURE_GRAPHS, PICTURE_GRAPHS_OF = 320 * MIB, "Qwen3VLForConditionalGeneration"
MARGIN = 0.03  # of the card, for what this estimate does not know

# Tensors that tensor parallelism splits over the ranks; embeddings, norms and the output head are on every one.
_SPLIT = re.compile(r"\.(layers|blocks)\.\d+\.")


class NoRoom(ValueError):
    """The memory does not hold a key and value cache; one sentence."""


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes on each of `tp` GPUs. `state_slot` is a linear-attention model's state for one answer."""

    weights: int
    block: int
    state_slot: int
    vocabulary: int

    @property
    def token(self) -> int:
        """Bytes of keys and values of one token."""
        return self.block // BLOCK_TOKENS


def model_memory(folder: ModelFolder, tp: int = 1) -> ModelMemory:
    """Raises ValueError with one sentence if config.json lacks a number or `tp` does not divide the model."""
    text = folder.text_config
    heads = _needed(text, "num_attention_heads")
    kv_heads = positive_int(text.get("num_key_value_heads")) or heads
    head_dim = positive_int(text.get("head_dim")) or _needed(text, "hidden_size") // heads
    layers = _needed(text, "num_hidden_layers")
    if heads % tp or (kv_heads % tp and tp % kv_heads):
        raise ValueError(f"{tp} GPUs cannot share {heads} attention heads and {kv_heads} key-value heads evenly")
    types = text.get("layer_types")
    linear = types.count("linear_attention") if isinstance(types, list) else 0
    # A layer's keys and values of a block; with more ranks than heads every rank keeps a copy of one.
    rows = _aligned(BLOCK_TOKENS * max(kv_heads // tp, 1) * head_dim * DTYPE_BYTES)
    return ModelMemory(
        weights=_weights(folder, tp),
        block=2 * rows * (layers - linear),
        state_slot=_state_slot(text, linear, tp) if linear else 0,
        vocabulary=_needed(text, "vocab_size"),
    )


def _weights(folder: ModelFolder, tp: int) -> int:
    """Everything but the names it skips, in 16 bit; quantised tensors keep their size."""
    tied = folder.config.get("tie_word_embeddings") is True
    total = 0
    for name, tensor in folder.tensors.items():
        if "rotary_emb.inv_freq" in name or (tied and "lm_head.weight" in name):
            continue
        size = math.prod(tensor.shape) * DTYPE_BYTES if tensor.dtype in ("BF16", "F16", "F32") else tensor.size
        total += size // tp if _SPLIT.search(name) and len(tensor.shape) > 1 else size
    return total


def _state_slot(text: dict[str, object], layers: int, tp: int) -> int:
    """The convolution and recurrent states of Qwen3.5's linear attention (pytorch/configurations/qwen3_5.py)."""
    value_heads = _needed(text, "linear_num_value_heads") // tp
    key_heads = _needed(text, "linear_num_key_heads") // tp
    value_dim, key_dim = _needed(text, "linear_value_head_dim"), _needed(text, "linear_key_head_dim")
    convolved = 2 * key_dim * key_heads + value_dim * value_heads
    convolution = layers * convolved * _needed(text, "linear_conv_kernel_dim") * DTYPE_BYTES
    recurrent = layers * value_heads * value_dim * key_dim * DTYPE_BYTES
    return _aligned(convolution) + _aligned(recurrent)


def activations(folder: ModelFolder, prefill_tokens: int, batch: int, vocabulary: int) -> int:
    """Bytes that a step may need at once: a prefill step full of images, and the logits of a whole batch.

    The widest layer's inputs and outputs in 16 bit, times what Qwen3-VL-2B took on an H200 beyond them: 170 KB a token.
    """
    text, vision = folder.text_config, folder.vision_config
    hidden, inner = positive_int(text.get("hidden_size")), positive_int(text.get("intermediate_size"))
    inner = max(inner, positive_int(text.get("moe_intermediate_size")) * positive_int(text.get("num_experts_per_tok")))
    text_width = 7 * hidden + 3 * inner
    vision_hidden = positive_int(vision.get("hidden_size")) or positive_int(vision.get("embed_dim"))
    vision_inner = positive_int(vision.get("intermediate_size")) or 4 * vision_hidden
    patches = folder.merge_size**2
    vision_width = patches * max(9 * vision_hidden, 2 * vision_hidden + 2 * vision_inner)
    deepstack = vision.get("deepstack_visual_indexes")
    kept = hidden * (2 + (len(deepstack) if isinstance(deepstack, list) else 0))
    step = prefill_tokens * (max(text_width, vision_width) + kept) * 2
    logits = batch * vocabulary * 16  # 16 bit, float32, and what sorts them
    return int(step * 1.7 + logits) + LATE_KERNELS


def left_by_weights(gpu: Gpu, model: ModelMemory) -> int:
    """Bytes of the card's free memory that weights and process leave."""
    return gpu.free - CONTEXT - model.weights - min(SLACK, int(SLACK_SHARE * model.weights))


def runtime_reserve(prefill_tokens: int, batch: int, vocabulary: int) -> int:
    """What it sets aside for logits before it sizes the cache."""
    return (prefill_tokens + 2 * batch) * vocabulary * DTYPE_BYTES


@dataclass(frozen=True)
class KvCache:
    """The cache it will allocate; `prefill_tokens` is the budget it was left with."""

    blocks: int
    prefill_tokens: int

    @property
    def tokens(self) -> int:
        return self.blocks * BLOCK_TOKENS

    @property
    def longest_session(self) -> int:
        """Tokens of the longest prompt and answer that one request may have."""
        return (self.blocks - RESERVED_BLOCKS) * BLOCK_TOKENS


def kv_cache(model: ModelMemory, free: int, fraction: float, prefill_tokens: int, batch: int) -> KvCache:
    """The cache for `free` bytes, those left once the weights are loaded. Raises NoRoom."""
    free -= model.state_slot * (batch + 2)
    while prefill_tokens > 0:
        reserve = runtime_reserve(prefill_tokens, batch, model.vocabulary)
        blocks = int((free - reserve) * fraction) // model.block
        if blocks <= 2:
            break
        if blocks >= MIN_BLOCKS:
            return KvCache(blocks, prefill_tokens)
        prefill_tokens //= 2
    raise NoRoom("no memory is left for the key and value cache")


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _needed(config: dict[str, object], key: str) -> int:
    value = positive_int(config.get(key))
    if not value:
        raise ValueError(f"config.json lacks {key}")
    return value
