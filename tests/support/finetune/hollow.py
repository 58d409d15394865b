"""Model folders of real sizes without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import shape_config
from examples.make_shapes_vl import build_tokenizer
from modelfiles.folder.model_folder import ModelFolder


def hollow_folder(folder: Path, shape: str) -> ModelFolder:
    """A folder of the shape whose weight file has a header and then nothing but a hole."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = shape_config(shape, build_tokenizer())
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        state = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config)).state_dict()
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return ModelFolder.open(folder)
