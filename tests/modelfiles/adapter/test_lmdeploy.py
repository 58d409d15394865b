"""An adapter for LMDeploy: its loader's rule finds every tensor, and the same weights change by the same amount."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.model.changes import plan_changes, read_trained
from finetune.recipe.schema import Recipe
from modelfiles.adapter.lmdeploy import write_lmdeploy_adapter
from modelfiles.adapter.reader import AdapterError
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.adapters import random_adapter
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]
PACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
PACKED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
LAYERS = 4
BLOCKS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def parameters(targets: set[str]) -> set[str]:
    """LMDeploy's LoRA parameters of a Qwen3-VL (pytorch/models/patch.py, add_adapters): one pair in every layer."""
    return {
        f"language_model.layers.{layer}.{block}.{PACKED.get(name, name)}.lora_adapters.{name}.{kind}"
        for layer in range(LAYERS)
        for block, names in BLOCKS.items()
        for name in names
        if name in targets
        for kind in ("lora_A", "lora_B")
    }


def parameter(name: str) -> str:
    """What LMDeploy makes of a tensor's name (pytorch/adapter/adapter.py, load_lora_weights)."""
    name = name[len("base_model.model.") :]
    assert name.endswith((".lora_A.weight", ".lora_B.weight"))
    module = name.split(".")[-3]
    place = f".{PACKED.get(module, module)}.lora_adapters.{module}"
    return name.removesuffix(".weight").replace(f".{module}", place)


@pytest.mark.parametrize(
    "keys", [{"lora_target": "all"}, {"lora_target": "q_proj,v_proj", "use_rslora": True}, {"lora_target": "down_proj"}]
)
def test_every_parameter_is_filled_once_with_the_same_change(
    recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]
) -> None:
    adapter = random_adapter(recipe(**keys), tmp_path / "adapter")
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    folder = ModelFolder.open(SHAPES_VL)
    write_lmdeploy_adapter(adapter, folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    loaded = {parameter(name): tensor for name, tensor in written.items()}
    assert len(loaded) == len(written)
    assert loaded.keys() == parameters(set(config["target_modules"]))
    scale = config["lora_alpha"] / config["r"]
    assert config["r"] == rank
    deltas = plan_changes(folder, read_trained(adapter, folder))
    assert len(deltas) * 2 == len(loaded)
    for delta in deltas:
        layer, block, name = delta.weight.removesuffix(".weight").split(".")[-3:]
        place = f"language_model.layers.{layer}.{block}.{PACKED.get(name, name)}.lora_adapters.{name}"
        change = scale * (loaded[f"{place}.lora_B"].float() @ loaded[f"{place}.lora_A"].float())
        torch.testing.assert_close(
            change, delta.merged(torch.zeros(delta.b.shape[0], delta.a.shape[1]), slice(0, delta.b.shape[0]))
        )


def test_layers_that_the_adapter_leaves_out_get_zeros(recipe: MakeRecipe, tmp_path: Path) -> None:
    adapter = random_adapter(recipe(lora_target="q_proj"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if ".layers.2." not in n}, adapter / "adapter_model.safetensors")
    write_lmdeploy_adapter(adapter, ModelFolder.open(SHAPES_VL), tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {parameter(name) for name in written} == parameters({"q_proj"})
    assert all(bool(tensor.any()) == (".layers.2." not in name) for name, tensor in written.items())


def test_names_of_qwen2_5_vl(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Its language model is `model` in LMDeploy, and its vision blocks have an MLP of the same names."""
    adapter = random_adapter(recipe(lora_target="q_proj"), tmp_path / "adapter")
    folder = ModelFolder.open(SHAPES_VL)
    folder.config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    write_lmdeploy_adapter(adapter, folder, tmp_path / "out")
    names = list(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    wide = random_adapter(recipe(lora_target="all"), tmp_path / "wide")
    with pytest.raises(AdapterError, match="a name that vision blocks have too: merge it"):
        write_lmdeploy_adapter(wide, folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"use_dora": True}, "uses use_dora, which LMDeploy does not have"),
        ({"rank_pattern": {"q_proj": 4}}, "uses rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "uses bias"),
        ({"peft_type": "IA3"}, "is no LoRA adapter but 'IA3'"),
        ({"lora_alpha": None}, "no usable r and lora_alpha"),
        ({"r": 3}, r"instead of \[3, "),
    ],
)
def test_what_lmdeploy_cannot_express_is_refused(
    recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    adapter = random_adapter(recipe(lora_target="q_proj"), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | keys))
    with pytest.raises(AdapterError, match=told):
        write_lmdeploy_adapter(adapter, ModelFolder.open(SHAPES_VL), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("language_model.layers.0", "visual.blocks.0", "which is no linear of the language model"),
        ("layers.3", "layers.7", "which shapes-vl does not have"),
        ("lora_B", "lora_C", "is not a LoRA matrix"),
    ],
)
def test_tensors_that_have_no_place_are_refused(
    recipe: MakeRecipe, tmp_path: Path, old: str, new: str, told: str
) -> None:
    adapter = random_adapter(recipe(lora_target="q_proj"), tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace(old, new): t for name, t in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=told):
        write_lmdeploy_adapter(adapter, ModelFolder.open(SHAPES_VL), tmp_path / "out")
