"""Model folders of published sizes: real configs, tensor names and shapes, sparse files of zeros for weights."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

# Dimensions of Qwen3-VL-2B-Instruct and Qwen3-VL-8B-Instruct.
TEXT = {
    "2B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
VISION = {
    "2B": {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "out_hidden_size": 2048},
    "8B": {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "out_hidden_size": 4096},
}
HEAD_DIM, KV_HEADS, VOCABULARY, PATCH, MERGE = 128, 8, 151936, 16, 2


def make_qwen3_vl(path: Path, size: str, **config: Any) -> Path:
    """A folder of the size; `config` sets keys of config.json."""
    path.mkdir(parents=True)
    text = TEXT[size] | {"head_dim": HEAD_DIM, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY}
    text |= {"bos_token_id": 151643, "eos_token_id": 151645, "dtype": "bfloat16", "max_position_embeddings": 262144}
    vision = VISION[size] | {"patch_size": PATCH, "spatial_merge_size": MERGE, "deepstack_visual_indexes": [5, 11, 17]}
    whole = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    whole |= {"text_config": text, "vision_config": vision, "tie_word_embeddings": size == "2B"}
    (path / "config.json").write_text(json.dumps(whole | config))
    pixels = {"patch_size": PATCH, "merge_size": MERGE, "size": {"longest_edge": 16777216, "shortest_edge": 65536}}
    (path / "preprocessor_config.json").write_text(json.dumps(pixels))
    write_safetensors(path / "model.safetensors", tensors(size))
    return path


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)


def tensors(size: str) -> dict[str, list[int]]:
    """Every tensor's shape, as transformers has them."""
    text, vision = TEXT[size], VISION[size]
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    queries, keys = text["num_attention_heads"] * HEAD_DIM, KV_HEADS * HEAD_DIM
    found = {"model.language_model.embed_tokens.weight": [VOCABULARY, hidden]}
    found["model.language_model.norm.weight"] = [hidden]
    if size != "2B":
        found["lm_head.weight"] = [VOCABULARY, hidden]
    layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "self_attn.q_norm": [HEAD_DIM],
        "self_attn.k_norm": [HEAD_DIM],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    for index in range(text["num_hidden_layers"]):
        found |= {f"model.language_model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    width, wide, merged = vision["hidden_size"], vision["intermediate_size"], vision["hidden_size"] * MERGE**2
    block = {"attn.qkv": [3 * width, width], "attn.proj": [width, width]}
    block |= {"mlp.linear_fc1": [wide, width], "mlp.linear_fc2": [width, wide], "norm1": [width], "norm2": [width]}
    merger = {"linear_fc1": [merged, merged], "linear_fc2": [vision["out_hidden_size"], merged]}
    parts = {f"blocks.{index}.{name}": shape for index in range(vision["depth"]) for name, shape in block.items()}
    parts |= {f"merger.{name}": shape for name, shape in (merger | {"norm": [width]}).items()}
    for index in range(3):
        parts |= {f"deepstack_merger_list.{index}.{name}": s for name, s in (merger | {"norm": [merged]}).items()}
    parts["patch_embed.proj"] = [width, 3, 2, PATCH, PATCH]
    for name, shape in parts.items():
        found |= {f"model.visual.{name}.weight": shape, f"model.visual.{name}.bias": shape[:1]}
    found["model.visual.pos_embed.weight"] = [2304, width]
    return found
