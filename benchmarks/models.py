"""Model folders of real sizes with random weights, for benchmarks where no real weights can be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Dimensions of Qwen3-VL-2B-Instruct and Qwen3-VL-8B-Instruct.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "2B": {
        "text": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
        },
        "other": {"deepstack": [5, 11, 17], "tied": True},
    },
    "8B": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        "vision": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
        },
        "other": {"deepstack": [8, 16, 24], "tied": False},
    },
    "tiny": {"text": {}, "vision": {}, "other": {"deepstack": [0, 1, 2], "tied": True}},
}
VOCABULARY = 151936
# Pixels of an image: from 256 x 256 to 4096 x 4096, as in Qwen3-VL's preprocessor_config.json.
PIXELS = (65536, 16777216)


def shape_config(shape: str, tokenizer: Any) -> dict[str, Any]:
    """config.json of the shape, with the special tokens' ids from examples.make_shapes_vl's tokenizer."""
    from examples import make_shapes_vl

    config = make_shapes_vl.model_config(tokenizer)
    dims = SHAPES[shape]
    if shape != "tiny":
        rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
        config["text_config"] |= {
            "head_dim": 128,
            "num_key_value_heads": 8,
            "vocab_size": VOCABULARY,
            "rope_scaling": rope,
        }
        config["vision_config"] |= {"num_position_embeddings": 2304}
    config["text_config"] |= dims["text"] | {"tie_word_embeddings": dims["other"]["tied"]}
    config["vision_config"] |= dims["vision"] | {"deepstack_visual_indexes": dims["other"]["deepstack"]}
    config["tie_word_embeddings"] = dims["other"]["tied"]
    return config


def write_model(folder: Path, shape: str, max_pixels: int = PIXELS[1]) -> None:
    """A Qwen3-VL folder of the shape with random bfloat16 weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from examples import make_shapes_vl

    tokenizer = make_shapes_vl.build_tokenizer()
    config = shape_config(shape, tokenizer)
    if shape != "tiny":
        tokenizer = with_vocabulary(tokenizer, VOCABULARY)
    make_shapes_vl.write_folder(folder, tokenizer, config)
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    pixels["size"] = {"longest_edge": max_pixels, "shortest_edge": PIXELS[0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
    torch.set_default_dtype(torch.float32)
    state = {n: t.cpu().contiguous() for n, t in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def with_vocabulary(tokenizer: Any, size: int) -> Any:
    """The tokenizer with words added up to `size`, so that a server can decode whatever random weights answer.

    The words have no merges: no text becomes them. The added tokens keep their ids.
    """
    from tokenizers import Tokenizer

    fields = json.loads(tokenizer.to_str())
    vocabulary = fields["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in fields["added_tokens"]}
    vocabulary |= {f"Ġw{number}": number for number in range(len(vocabulary), size)}
    return Tokenizer.from_str(json.dumps(fields))
