"""Adapters made by PEFT itself: the merged folder has PEFT's weights and gives the adapter's answers, every one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from finetune.evaluation.evaluate import evaluate
from finetune.export.merge import merge
from finetune.model.base import load_base, old_names_allowed
from finetune.model.folder import open_base
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.adapters import CPU
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

ROWS = 200
ANSWERING = {"per_device_eval_batch_size": 50, "max_new_tokens": 2}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}, "alpha_pattern": {"up_proj": 3}},
    "pissa converted": {"init_lora_weights": "pissa"},
    "olora converted": {"init_lora_weights": "olora", "lora_alpha": 2},
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = ("what color is the shape", "what is it", "is it red", "how many shapes are there")
    rows = [ask(f"{asked[number % 4]} {number}?", "red", number % 8) for number in range(ROWS)]
    return write_dataset(tmp_path_factory.mktemp("questions"), rows)


def made_by_peft(recipe: Recipe, path: Path, keys: dict[str, Any]) -> Any:
    """Writes an adapter that changes answers, as PEFT saves it; the model in float32 with it.

    A start that changes the base is converted by PEFT's own path_initial_model_for_weight_conversion.
    """
    torch.manual_seed(1)
    start = keys.get("init_lora_weights", True)
    config = {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*\.(q_proj|v_proj|up_proj)"}
    with old_names_allowed():
        model = get_peft_model(
            load_base(open_base(recipe), recipe, CPU, torch.float32), LoraConfig(**{**config, **keys})
        )
    if start is not True:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(path.with_name("start"))
        model.peft_config["default"].init_lora_weights = start
    far = 0.1 if start == "pissa" else 1.0  # PiSSA's other matrix is as large as the weight itself
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += far * torch.randn_like(parameter)
            elif "lora_magnitude" in name:
                parameter *= 1 + 0.1 * torch.rand_like(parameter)
    converted = {} if start is True else {"path_initial_model_for_weight_conversion": str(path.with_name("start"))}
    model.save_pretrained(path, **converted)
    return model


@pytest.fixture(scope="module")
def base_in_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same base with the same values in float32, so that nothing of a merge is lost to bfloat16."""
    folder = tmp_path_factory.mktemp("base") / "float32"
    shutil.copytree(SHAPES_VL, folder)
    weights = {name: tensor.float() for name, tensor in load_file(SHAPES_VL / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def answers_of_base(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    values = {"model_name_or_path": str(SHAPES_VL), "dataset_dir": str(questions), "eval_dataset": "shapes"}
    return answers(make_recipe(values | {"output_dir": str(tmp_path_factory.mktemp("of base"))} | ANSWERING))


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights")
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_and_merged_folder_agree_on_two_hundred_rows(
    recipe: Callable[..., Recipe], questions: Path, base_in_float32: Path, answers_of_base: list[str], tmp_path: Path,
    kind: str,
) -> None:  # fmt: skip
    """Weights within one rounding step of PEFT's merge in the base's own dtype, and in float32, where that step is too
    small to decide an answer, every answer the same."""
    made = recipe(dataset_dir=str(questions), **ANSWERING)
    model = made_by_peft(made, tmp_path / "adapter", KINDS[kind])
    given = made.model_copy(update={"adapter_name_or_path": str(tmp_path / "adapter")})
    merged_folders = {
        base: merge(given.model_copy(update={"model_name_or_path": str(base), "export_dir": str(tmp_path / name)}))
        for name, base in {"bfloat16": SHAPES_VL, "float32": base_in_float32}.items()
    }
    reference = model.merge_and_unload().state_dict()
    for base, folder in merged_folders.items():
        merged, before = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
        for name, tensor in merged.items():
            step = torch.finfo(tensor.dtype).eps * reference[name].abs() + 1e-7  # of the conversion's own arithmetic
            assert ((reference[name] - tensor.float()).abs() <= step).all(), name
        assert sum(not torch.equal(merged[name], before[name]) for name in before) == 12
    of_adapter = answers(given.model_copy(update={"output_dir": str(tmp_path / "of adapter")}))
    whole = {"model_name_or_path": str(merged_folders[base_in_float32]), "output_dir": str(tmp_path / "of folder")}
    assert of_adapter == answers(made.model_copy(update=whole))
    assert len(of_adapter) == ROWS
    # Else agreeing would prove little.
    assert sum(one != other for one, other in zip(of_adapter, answers_of_base, strict=True)) > ROWS // 4


def answers(recipe: Recipe) -> list[str]:
    evaluate(recipe)
    lines = (Path(str(recipe.output_dir)) / "generated_predictions.jsonl").read_text().splitlines()
    return [record["predict"] for record in sorted(map(json.loads, lines), key=lambda record: record["index"])]
