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
import re
from pathlib import Path

from modelfiles.adapter.reader import (
    PREFIX,
    Adapter,
    AdapterError,
    read_adapter,
    read_adapter_config,
    refuse_other_texts,
)
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.safetensors_writer import TensorSource, write_safetensors

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
MERGE = "merge it with `lensmith export`."


def write_lmdeploy_adapter(path: Path, folder: ModelFolder, out: Path) -> None:
    """Writes the PEFT adapter in `path`, trained on `folder`'s model, to the directory `out` for LMDeploy.

    Raises AdapterError, ModelFolderError.
    """
    adapter = _read(path)
    refuse_other_texts(path, folder)
    matrices, targets = _renamed(adapter, folder)
    out.mkdir(parents=True, exist_ok=True)
    alpha = adapter.rank * next(iter(adapter.lora.values())).scale
    # The few keys it needs: an older peft refuses those that it does not know.
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder.path),
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (out / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    write_safetensors(out / "adapter_model.safetensors", matrices)


def _read(path: Path) -> Adapter:
    config = read_adapter_config(path)
    used = [key for key in INEXPRESSIBLE if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise AdapterError(f"{path} uses {used[0]}, which LMDeploy does not have; {MERGE}")
    return read_adapter(path, config)


def _renamed(adapter: Adapter, folder: ModelFolder) -> tuple[dict[str, TensorSource], set[str]]:
    """The matrices under LMDeploy's names, with zeros for those that are missing, and the linears they change."""
    prefix = LANGUAGE_MODEL.get(folder.architecture)
    if prefix is None:
        raise AdapterError(f"Adapters of {folder.architecture or 'this model'} are not served; {MERGE}")
    linears = _text_linears(folder)
    matrices: dict[str, TensorSource] = {}
    targets, dtypes = set(), set()
    for module, pair in adapter.lora.items():
        match = _LAYER.search(module)
        if match is None or "visual" in module or match[3] not in LINEARS:
            raise AdapterError(f"{adapter.path} changes {module}, which is no linear of the language model: {MERGE}")
        if match[3] in AMBIGUOUS.get(folder.architecture, ()):
            raise AdapterError(f"{adapter.path} changes {match[3]}, a name that vision blocks have too: {MERGE}")
        key = (int(match[1]), match[2], match[3])
        if key not in linears:
            raise AdapterError(
                f"{adapter.path} changes layer {match[1]}'s {match[3]}, which {folder.name} does not have."
            )
        rows, columns = linears[key]
        for kind, info, expected in (
            ("lora_A", pair.a, (adapter.rank, columns)),
            ("lora_B", pair.b, (rows, adapter.rank)),
        ):
            if info.shape != expected:
                raise AdapterError(
                    f"{adapter.path}: {kind} of {module} is {list(info.shape)} instead of {list(expected)}."
                )
            matrices[_name(prefix, key, kind)] = TensorSource(info.dtype, info.shape, info)
            dtypes.add(info.dtype)
        targets.add(match[3])
    dtype = min(dtypes)
    for key, (rows, columns) in linears.items():
        if key[2] in targets and _name(prefix, key, "lora_A") not in matrices:
            for kind, shape in (("lora_A", (adapter.rank, columns)), ("lora_B", (rows, adapter.rank))):
                matrices[_name(prefix, key, kind)] = TensorSource(dtype, shape, None)
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
    return f"{PREFIX}{prefix}layers.{key[0]}.{key[1]}.{key[2]}.{kind}.weight"
