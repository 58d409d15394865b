"""The estimate of steps that run layer by layer against what they allocate, and against a measured run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import shape_config
from examples.make_shapes_vl import build_tokenizer
from finetune.compute.decoder import LayeredStep
from finetune.compute.fixed_inputs import FixedInputs
from finetune.compute.host_stack import HostMemory
from finetune.memory.cards import CARDS
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.memory.layered import why_modules
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.allocations import META, Allocations, adapted_model
from tests.support.finetune.hollow import hollow_folder

ROWS, LENGTH, LAYERS, LABELS = 2, 2472, 6, 28
LOAD = MicroBatchLoad(ROWS, ROWS * LENGTH, LABELS, 4800, 19200, 1200)


def recipe(**keys: Any) -> Recipe:
    return make_recipe({"model_name_or_path": "m", "quantization_bit": 4, "lora_rank": 8, **keys})


def folder_of(config: dict[str, Any], path: Path) -> ModelFolder:
    (path / "config.json").write_text(json.dumps(config))
    header = b"{}".ljust(8)
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return ModelFolder.open(path)


@pytest.mark.parametrize("in_host", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kept_layers", [0, 2, LAYERS])
def test_the_estimate_is_what_the_layers_allocate(
    dropout: float, kept_layers: int, in_host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shape_config("2B", build_tokenizer())
    config["text_config"]["num_hidden_layers"] = LAYERS
    base = adapted_model(config, dropout, monkeypatch)
    tokens, hidden = ROWS * LENGTH, config["text_config"]["hidden_size"]
    host = HostMemory(LAYERS - kept_layers, tokens * hidden, torch.float16, META) if in_host else None
    if host is not None:
        host.host = host.host.to(META)
    step = LayeredStep(base, kept_layers, host)
    step.draws = None  # seeds cannot be set for tensors without contents
    numbers, places = torch.zeros(4, ROWS, LENGTH, dtype=torch.long, device=META), torch.zeros(2, 64, device=META)
    features = torch.zeros(4, tokens, hidden, dtype=torch.float16, device=META)
    inputs = FixedInputs(numbers[0], numbers[1:], features, places[0].long(), places[1].long())
    with Allocations() as allocated:
        step.learn(inputs, torch.zeros((), device=META))
    keys = {"lora_dropout": dropout, "max_steps": 1}
    folder, free = folder_of(config, tmp_path), math.inf if in_host else 0
    found = estimate(folder, recipe(**keys), LOAD, CARDS["h200"], kept_layers, layered=True, host=free)
    counted = max(found.moments["loss"], found.moments["backward"])
    assert counted == pytest.approx(allocated.peak, rel=0.05), counted / allocated.peak


def test_a_run_in_graphs_needs_less_than_one_by_modules(tmp_path: Path) -> None:
    folder = hollow_folder(tmp_path, "2B")
    layered, modules = (
        estimate(folder, recipe(), LOAD, CARDS["h200"], 0, layered).reserved for layered in (True, False)
    )
    assert layered < 0.9 * modules


@pytest.mark.parametrize(
    ("shape", "dropout", "host", "reserved"),
    [("2B", 0.0, math.inf, 3.09), ("2B", 0.0, 0, 3.54), ("8B", 0.1, math.inf, 10.54)],
)
def test_the_estimate_is_near_what_a_card_reserved_and_not_below_it(
    shape: str, dropout: float, host: float, reserved: float, tmp_path: Path
) -> None:
    """`reserved`: GiB of an H200 (docs/benchmarks.md)."""
    folder = hollow_folder(tmp_path, shape)
    found = estimate(folder, recipe(lora_dropout=dropout), LOAD, CARDS["h200"], 0, layered=True, host=host)
    assert reserved <= found.reserved / GIB < 1.06 * reserved


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, ""),
        ({"stage": "dpo"}, "stage: dpo"),
        ({"finetuning_type": "full", "quantization_bit": None}, "finetuning_type: full"),
        ({"packing": True}, "packing is set"),
        ({"flash_attn": "disabled"}, "flash_attn: disabled"),
        ({"freeze_vision_tower": False}, "the vision tower is trained"),
    ],
)
def test_what_modules_compute_is_known_from_the_recipe(keys: dict[str, Any], reason: str) -> None:
    assert why_modules(recipe(**keys), "qwen3_vl") == reason
    assert why_modules(recipe(), "qwen3_vl", 2) == "several processes train together"
    assert why_modules(recipe(), "gemma3") == "the model is of another family"
