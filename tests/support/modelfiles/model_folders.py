"""Makes small model folders for the tests: real configs and tensor names, weights of zeros."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from tests.support.paths import GOLDENS

FOLDERS = json.loads((GOLDENS / "folders_transformers5.json").read_text())["families"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "U8": 1}


def write_safetensors(path: Path, tensors: dict[str, list[int]], dtypes: dict[str, str] | None = None) -> None:
    """A safetensors file of zeros (BF16 unless `dtypes` says otherwise); sparse, so big shapes cost no disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        dtype = (dtypes or {}).get(name, "BF16")
        end = position + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    write_raw_safetensors(path, json.dumps(header).encode(), position)


def write_raw_safetensors(path: Path, header: bytes, data: int, claimed: int | None = None) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header) if claimed is None else claimed) + header)
        file.truncate(8 + len(header) + data)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a value of None deletes the key."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        value[key] = change
    write_json(path, {key: item for key, item in value.items() if item is not None})


def make_folder(path: Path, family: str = "qwen3_vl", min_pixels: int = 65536, **config: Any) -> Path:
    """A model folder as transformers 5 saves it; `config` sets keys of config.json, `min_pixels` the processor's."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", FOLDERS[family]["config"] | config)
    write_safetensors(path / "model.safetensors", FOLDERS[family]["tensors"])
    write_json(path / "generation_config.json", {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": [102, 100],
    })  # fmt: skip
    write_json(path / "tokenizer_config.json", {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"})
    write_json(path / "tokenizer.json", {
        "version": "1.0",
        "added_tokens": [{"id": 100 + i, "content": text, "special": True} for i, text in enumerate(SPECIAL)],
        "model": {"type": "BPE", "vocab": {chr(33 + i): i for i in range(90)}, "merges": []},
    })  # fmt: skip
    write_json(path / "processor_config.json", {"image_processor": {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": min_pixels, "longest_edge": 16777216},
    }})  # fmt: skip
    (path / "chat_template.jinja").write_text((GOLDENS / "qwen3_vl.jinja").read_text())
    return path


def gguf(path: Path, **metadata: str | int) -> None:
    """Write a GGUF header of strings and 32-bit integers; __ in a name is its point."""
    body = b""
    for key, value in metadata.items():
        name = key.replace("__", ".").encode()
        body += struct.pack("<Q", len(name)) + name
        if isinstance(value, str):
            body += struct.pack("<IQ", 8, len(value)) + value.encode()
        else:
            body += struct.pack("<II", 4, value)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + body)
