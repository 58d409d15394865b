"""The memory estimate: what can be counted is counted exactly; what grows with the recipe grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.memory.cards import CARDS
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.recipe.load import make_recipe
from tests.support.finetune.families import family_folder
from tests.support.paths import SHAPES_VL

LOAD = MicroBatchLoad(rows=2, tokens=1000, labels=40, image_tokens=600, patches=2400)


def recipe(**keys: Any) -> Any:
    return make_recipe({"model_name_or_path": str(SHAPES_VL), **keys})


WHAT_IS_TRAINED: list[dict[str, Any]] = [
    {"lora_target": "all", "lora_rank": 4},
    {"lora_target": "q_proj,down_proj"},
    {"lora_target": r".*layers\.[01]\.mlp\..*"},
    {"freeze_vision_tower": False},
    {"freeze_multi_modal_projector": False, "freeze_language_model": True},
    {"use_dora": True},
    {"finetuning_type": "full"},
    {"finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False},
    {"finetuning_type": "freeze", "freeze_trainable_layers": 2},
    {"finetuning_type": "freeze", "freeze_trainable_layers": -1, "freeze_trainable_modules": "mlp"},
]


@pytest.mark.parametrize("keys", WHAT_IS_TRAINED, ids=str)
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl"])
def test_trained_parameters_are_those_of_the_run(family: str, keys: dict[str, Any], tmp_path: Path) -> None:
    ours = make_recipe({"model_name_or_path": str(family_folder(family, tmp_path / "model")), **keys})
    folder = open_base(ours)
    model = make_trainable(load_base(folder, ours, torch.device("cpu"), torch.float32), ours)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    model_states = estimate(folder, ours, LOAD, CARDS["t4"]).model_states
    assert model_states["trained parameters"] == model_states["gradients"] == 4 * trained
    assert model_states["optimiser"] == 8 * trained
    assert model_states["weights in 16 bits"] == 2 * frozen


@pytest.mark.parametrize("double", [True, False])
def test_four_bit_weights_are_what_bitsandbytes_stores(double: bool) -> None:
    ours = recipe(quantization_bit=4, double_quantization=double)
    base = load_base(open_base(ours), ours, torch.device("cpu"), torch.float16)
    stored = 0
    for module in base.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            scales = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
            stored += module.weight.nbytes + scales
    estimated = estimate(open_base(ours), ours, LOAD, CARDS["t4"]).model_states
    assert estimated["weights in 4 bits"] == pytest.approx(stored, rel=0.01)
    others = [p for p in base.parameters() if p.dtype != torch.uint8]
    assert estimated["weights in 16 bits"] == sum(2 * p.numel() for p in others)


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"quantization_bit": 4}, {}),
        ({}, {"lora_rank": 64}),
        ({}, {"disable_gradient_checkpointing": True}),
        ({"lora_target": "q_proj"}, {}),
    ],
)
def test_what_costs_memory_is_estimated_to(smaller: dict[str, Any], larger: dict[str, Any]) -> None:
    little, much = (estimate(open_base(recipe()), recipe(**keys), LOAD, CARDS["t4"]) for keys in (smaller, larger))
    assert little.reserved < much.reserved
