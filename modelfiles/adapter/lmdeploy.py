"""Writes a PEFT LoRA adapter the way that LMDeploy's PyTorch engine loads one for a Qwen vision-language model.

LMDeploy 0.18 strips `base_model.model.` from a tensor's name and looks the rest up among its own parameters, which are
called `language_model.layers...` (Qwen3-VL) or `model.layers...` (Qwen2-VL, Qwen2.5-VL) where PEFT on transformers has
`model.language_model.layers...`: KeyError (lmdeploy issues 4105 and 4162). It gives every module of a target's name,
vision blocks included, matrices that hold whatever the memory held unless the adapter fills them, iterates
`target_modules` as a set, and knows one rank and one scale for an adapter (pytorch/models/patch.py, add_adapters;
pytorch/adapter/adapter.py). So the tensors are renamed, modules that the adapter leaves out get zeros, and what cannot
be expressed is refused.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfiles.folder.files import positive_int, read_json, regular_file
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.folder.safetensors_header import HeaderError, TensorInfo, read_header

PEFT_PREFIX = "base_model.model."
# What LMDeploy calls the language model (pytorch/models/qwen*_vl.py), by architecture.
LANGUAGE_MODEL = {
    "Qwen2VLForConditionalGeneration": "model.",
    "Qwen2_5_VLForConditionalGeneration": "model.",
    "Qwen3VLForConditionalGeneration": "language_model.",
}
# Linears of the language model whose names other modules of the model have too: LMDeploy would change those as well.
AMBIGUOUS = {"Qwen2_5_VLForConditionalGeneration": {"gate_proj", "up_proj", "down_proj"}}
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# Keys of adapter_config.json that mean more than W + scale * B A; `merge` can take most of them.
INEXPRESSIBLE = ("modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora", "lora_bias")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(\w+)\.(\w+)$")
_CHUNK = 1 << 24


class AdapterError(ValueError):
    """The adapter cannot be served beside its base; one sentence, and `lensmith export` is the way out."""


@dataclass(frozen=True)
class AdapterMatrix:
    """A tensor to write: bytes of the adapter's file, or zeros."""

    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo | None

    @property
    def size(self) -> int:
        return self.source.size if self.source else math.prod(self.shape) * (4 if self.dtype == "F32" else 2)


def write_lmdeploy_adapter(adapter: Path, folder: ModelFolder, out: Path) -> None:
    """Write `adapter`, a PEFT directory trained on `folder`'s model, to the directory `out` for LMDeploy.

    Raises AdapterError, ModelFolderError.
    """
    config, tensors = _read(adapter)
    rank, alpha = _scale(adapter, config)
    matrices, targets = _renamed(adapter, folder, tensors, rank)
    out.mkdir(parents=True, exist_ok=True)
    # The few keys it needs: an older peft refuses those that it does not know.
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder.path),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (out / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    _write_safetensors(out / "adapter_model.safetensors", matrices)


def _read(adapter: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    folder = adapter.expanduser().resolve()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"{adapter} has no {name}; give the directory of a PEFT adapter.")
    config = read_json(folder, "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{adapter} is no LoRA adapter but {config.get('peft_type')!r}.")
    used = [key for key in INEXPRESSIBLE if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise AdapterError(f"{adapter} uses {used[0]}, which LMDeploy does not have; merge it with `lensmith export`.")
    try:
        return config, read_header(regular_file(folder, "adapter_model.safetensors"))
    except HeaderError as error:
        raise ModelFolderError(f"{error}.", "MF106") from None


def _scale(adapter: Path, config: dict[str, Any]) -> tuple[int, float]:
    """Rank, and the alpha that makes alpha / rank the adapter's scale."""
    rank, alpha = positive_int(config.get("r")), config.get("lora_alpha")
    if not rank or not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError(f"{adapter}/adapter_config.json has no usable r and lora_alpha.")
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _renamed(
    adapter: Path, folder: ModelFolder, tensors: dict[str, TensorInfo], rank: int
) -> tuple[dict[str, AdapterMatrix], set[str]]:
    """The tensors under LMDeploy's names, complete, and the linears they change."""
    prefix = LANGUAGE_MODEL.get(folder.architecture)
    merge = "merge it with `lensmith export`."
    if prefix is None:
        raise AdapterError(f"Adapters of {folder.architecture or 'this model'} are not served; {merge}")
    linears = _text_linears(folder)
    matrices: dict[str, AdapterMatrix] = {}
    targets, dtypes = set(), set()
    for name, info in tensors.items():
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        match = _LAYER.search(module)
        if kind not in ("lora_A", "lora_B") or not name.startswith(PEFT_PREFIX):
            raise AdapterError(f"{adapter} has the tensor {name}, which is no LoRA matrix; {merge}")
        if match is None or "visual" in module or match[3] not in LINEARS:
            raise AdapterError(f"{adapter} changes {module}, which is no linear of the language model: {merge}")
        if match[3] in AMBIGUOUS.get(folder.architecture, ()):
            raise AdapterError(f"{adapter} changes {match[3]}, a name that vision blocks have too: {merge}")
        key = (int(match[1]), match[2], match[3])
        if key not in linears:
            raise AdapterError(f"{adapter} changes layer {match[1]}'s {match[3]}, which {folder.name} does not have.")
        rows, columns = linears[key]
        expected = (rank, columns) if kind == "lora_A" else (rows, rank)
        if info.shape != expected or info.dtype not in ("BF16", "F16", "F32"):
            raise AdapterError(f"{adapter}'s {name} is {info.dtype} {list(info.shape)} instead of {list(expected)}.")
        matrices[_name(prefix, key, kind)] = AdapterMatrix(info.dtype, info.shape, info)
        targets.add(match[3])
        dtypes.add(info.dtype)
    if not matrices:
        raise AdapterError(f"{adapter} has no tensors.")
    dtype = min(dtypes)
    for key, (rows, columns) in linears.items():
        if key[2] in targets:
            pair = {"lora_A": (rank, columns), "lora_B": (rows, rank)}
            missing = [kind for kind in pair if _name(prefix, key, kind) not in matrices]
            if len(missing) == 1:
                raise AdapterError(f"{adapter} has only one of the two matrices of layer {key[0]}'s {key[2]}.")
            matrices |= {_name(prefix, key, kind): AdapterMatrix(dtype, pair[kind], None) for kind in missing}
    return matrices, targets


def _text_linears(folder: ModelFolder) -> dict[tuple[int, str, str], tuple[int, ...]]:
    """(layer, block, linear) of the language model -> its weight's shape."""
    found: dict[tuple[int, str, str], tuple[int, ...]] = {}
    for name, info in folder.tensors.items():
        match = _LAYER.search(name.removesuffix(".weight"))
        if match is not None and "visual" not in name and match[3] in LINEARS and len(info.shape) == 2:
            found[int(match[1]), match[2], match[3]] = info.shape
    return found


def _name(prefix: str, key: tuple[int, str, str], kind: str) -> str:
    return f"{PEFT_PREFIX}{prefix}layers.{key[0]}.{key[1]}.{key[2]}.{kind}.weight"


def _write_safetensors(path: Path, matrices: dict[str, AdapterMatrix]) -> None:
    header, position = {}, 0
    for name, matrix in matrices.items():
        header[name] = {
            "dtype": matrix.dtype,
            "shape": matrix.shape,
            "data_offsets": [position, position + matrix.size],
        }
        position += matrix.size
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for matrix in matrices.values():
            if matrix.source is None:
                file.write(bytes(matrix.size))
                continue
            with matrix.source.shard.open("rb") as source:
                source.seek(matrix.source.offsets[0])
                left = matrix.size
                while left:
                    chunk = source.read(min(_CHUNK, left))
                    file.write(chunk)
                    left -= len(chunk)
