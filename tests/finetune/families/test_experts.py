"""A mixture of experts: what is adapted and in 4 bits is said, and the experts stay as they are."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.export.merge import merge
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.loop import train
from tests.support.finetune.families import assert_weights_as_peft_merges_them
from tests.support.finetune.other_families import experts_folder

# Of a layer's 394,880 weights, attention's linears are 196,608 (q alone 65,536); 4 experts have 49,152 each.
SHARES = re.compile(r"is a mixture of experts: adapters are on (\d+) % of its weights( and (\d+) % are in 4 bits)?;")


@pytest.fixture
def recipe_of(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    base = experts_folder(tmp_path / "base")

    def make(**keys: Any) -> Recipe:
        return recipe(**{"model_name_or_path": str(base), "max_samples": 6, **keys})

    return make


@pytest.mark.parametrize(
    ("keys", "adapted", "small"),
    [({}, "50", None), ({"quantization_bit": 4}, "50", "50"), ({"lora_target": "q_proj"}, "17", None)],
)
def test_check_and_train_say_what_of_it_is_adapted_and_in_four_bits(
    recipe_of: Callable[..., Recipe], keys: dict[str, Any], adapted: str, small: str | None
) -> None:
    made = recipe_of(**keys, eval_dataset=None, max_steps=1)
    checked, trained = (Console(file=io.StringIO(), width=400) for _ in range(2))
    assert check_recipe(made, Report(checked))
    train(made, trained)
    for console in (checked, trained):
        said = SHARES.search(console.file.getvalue())
        assert said is not None
        assert (said[1], said[3]) == (adapted, small)
    assert "its PyTorch engine lists Qwen3VLMoeForConditionalGeneration" in checked.file.getvalue()


def test_adapters_are_merged_and_the_experts_stay(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    made = recipe_of(learning_rate=5e-3, export_dir=str(tmp_path / "merged"))
    train(made)
    target = merge(made.model_copy(update={"adapter_name_or_path": str(tmp_path / "out")}))
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", target))
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(torch.equal(before[name], after[name]) for name in experts)
    assert_weights_as_peft_merges_them(target, recipe_of, tmp_path / "out")


def test_adapting_an_expert_is_refused(recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(FinetuneError, match="have no linear 'gate_up_proj'"):
        train(recipe_of(lora_target="gate_up_proj"))
