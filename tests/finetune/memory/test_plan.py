"""What `auto` takes: what fits by the estimate, and of that the quickest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from finetune.encoding.encoded import Encoded
from finetune.families.registry import family_of
from finetune.memory.cards import Card
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.plan import KEPT_SHARE, MOST_TOKENS, Plan, plans
from finetune.memory.trial import quickest
from finetune.model.folder import open_base
from finetune.recipe.load import make_recipe
from tests.support.paths import SHAPES_VL

CARD = Card("a card", 16.0, (8, 0))
AUTO = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 12}


def row(tokens: int) -> Encoded:
    labelled = np.arange(tokens) >= tokens - 3
    return Encoded(np.ones(tokens, np.int64), labelled, np.zeros((3, tokens), np.int64), (), "a row")


def found(
    memory: float, tokens: int = 100, card: Card | None = CARD, host: float = math.inf, **keys: Any
) -> list[Plan]:
    recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), **AUTO, **keys})
    folder = open_base(recipe)
    bank = family_of(folder).read(folder, recipe).bank
    return plans(folder, recipe, [row(tokens)] * 40, bank, card, memory, host=host)


def needed(size: int, kept: int, tokens: int = 100, layered: bool = True, **keys: Any) -> int:
    recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), "per_device_train_batch_size": size, **keys})
    folder = open_base(recipe)
    load = heaviest_load([row(tokens)] * 40, recipe, family_of(folder).read(folder, recipe).bank)
    return estimate(folder, recipe, load, CARD, kept, layered).reserved


def test_rows_divide_the_step_and_the_most_come_first() -> None:
    assert [(plan.size, plan.accumulation) for plan in found(16 * GIB)] == [
        (12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12),
    ]  # fmt: skip
    assert all(plan.kept_layers == plan.layers == 4 for plan in found(16 * GIB))


def test_rows_that_do_not_fit_are_not_tried() -> None:
    memory = needed(4, 0)
    assert [plan.size for plan in found(memory)] == [4, 3, 2, 1]
    assert found(memory)[0].needed == pytest.approx(memory, rel=0.05)
    assert found(memory)[0].kept_layers < 4
    assert found(memory, disable_gradient_checkpointing=True)[0].size < 4
    assert [plan.size for plan in found(1)] == [1], "where nothing fits, the least that can be tried"


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_activations_are_kept_of_as_many_layers_as_fit(kept: int) -> None:
    memory = needed(6, kept, tokens=1000)
    assert needed(6, kept + 1, tokens=1000) > 1.001 * memory
    keys = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    (plan,) = found(1.001 * memory / KEPT_SHARE, tokens=1000, **keys)
    assert (plan.size, plan.accumulation, plan.kept_layers, plan.needed) == (6, 2, kept, memory)


def test_memory_is_that_of_the_way_in_which_steps_run() -> None:
    keys = {"disable_gradient_checkpointing": False, "tokens": 1000}
    assert found(16 * GIB, **keys)[0].needed == needed(12, 0, 1000)
    assert found(16 * GIB, packing=True, **keys)[0].needed == needed(12, 0, 1000, layered=False, packing=True)
    assert found(16 * GIB, host=0, **keys)[0].needed > needed(12, 0, 1000), "layers' inputs stay on the GPU"


def test_no_more_tokens_go_at_once_than_keep_a_gpu_busy() -> None:
    assert found(1e15, tokens=MOST_TOKENS // 4)[0].size == 4
    assert found(1e15, tokens=MOST_TOKENS * 2)[0].size == 1


def test_packed_rows_need_less() -> None:
    recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), "per_device_train_batch_size": 2})
    folder = open_base(recipe)
    bank = family_of(folder).read(folder, recipe).bank
    rows = [row(100), row(20)]
    assert heaviest_load(rows, recipe, bank).tokens == 200
    assert heaviest_load(rows, recipe.model_copy(update={"packing": True}), bank).tokens == 120


class Fake:
    """A trial whose speeds are known; 0 is out of memory."""

    def __init__(self, speeds: dict[int, float]) -> None:
        self.speeds, self.tried, self.feed = speeds, [], self

    def speed(self, plan: Plan) -> float:
        self.tried.append(plan.size)
        if not self.speeds[plan.size]:
            raise torch.OutOfMemoryError
        return self.speeds[plan.size]

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("speeds", "best", "tried"),
    [
        ({12: 10.0, 6: 8.0}, 12, [12, 6]),  # fewer rows are slower: no need to go on
        ({12: 10.0, 6: 12.0, 4: 12.1, 3: 9.0}, 6, [12, 6, 4, 3]),  # hardly quicker is not quicker
        ({12: 0.0, 6: 0.0, 4: 3.0, 3: 2.0}, 4, [12, 6, 4, 3]),
        ({12: 0.0, 6: 0.0, 4: 0.0, 3: 0.0}, 1, [12, 6, 4, 3]),
    ],
)
def test_the_quickest_that_fits_is_taken(speeds: dict[int, float], best: int, tried: list[int]) -> None:
    trial: Any = Fake(speeds)
    plan, measured = quickest(found(16 * GIB), trial)
    assert plan.size == best
    assert trial.tried == tried
    assert f"{tried[-1]}" in measured
