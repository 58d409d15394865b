"""The memory estimate against peaks measured on a GPU by `python -m benchmarks.finetune_memory`."""

from __future__ import annotations

import json

import pytest

from benchmarks.finetune_memory import CASES
from finetune.memory.cards import CARDS
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.recipe.load import make_recipe
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.hollow import hollow_folder
from tests.support.paths import ROOT

MEASURED = json.loads((ROOT / "benchmarks/results/finetune_memory.json").read_text())["cases"]
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """Folders of the real shapes whose weight files have a header and then nothing but a hole."""
    return {shape: hollow_folder(tmp_path_factory.mktemp(shape), shape) for shape in ("2B", "8B")}


@pytest.mark.parametrize("name", MEASURED)
def test_estimate_is_near_the_measured_peak(name: str, shapes: dict[str, ModelFolder]) -> None:
    case, measured = BY_NAME[name], MEASURED[name]
    recipe = make_recipe({"model_name_or_path": "m", "per_device_train_batch_size": case.batch, **case.recipe})
    card = CARDS["t4" if name.startswith("t4-") else "h200"]
    estimated = estimate(shapes[case.shape], recipe, MicroBatchLoad(**measured["load"]), card).reserved / GIB
    assert estimated == pytest.approx(measured["reserved_gib"], rel=0.05)
