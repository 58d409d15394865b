"""Rows in slots: whenever a row ends, whatever takes its place or remains, every answer is the one it gets alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from finetune.data.datasets import load_rows
from finetune.families.generation.greedy import greedy
from finetune.families.generation.rows import Rows
from finetune.families.qwen_vl import QwenVL
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]
TOKENS = 16


@pytest.mark.parametrize("at_once", [1, 3, 8, None])
def test_answers_that_end_at_different_times_are_those_of_each_row_alone(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, at_once: int | None
) -> None:
    made = recipe()
    folder = open_base(made)
    reader = QwenVL().read(folder, made)
    prompts = list(reader.encoder.encode_prompt(load_rows("shapes", made).rows))
    model = load_base(folder, made, torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight), requires_grad=False)
    feed = QwenVL().feed(model, reader, [image for prompt in prompts for image in prompt.images])
    moved, move = [], Rows.move

    def count(rows: Rows, source: torch.Tensor, target: torch.Tensor) -> None:
        moved.extend(source.tolist())
        move(rows, source, target)

    monkeypatch.setattr(Rows, "move", count)

    def answers(ends: list[int], rows: int | None) -> dict[int, list[int]]:
        with torch.no_grad():
            return dict(greedy(model, prompts, feed.images, ends, TOKENS, rows))

    whole = answers([-1], 1)
    assert {len(answer) for answer in whole.values()} == {TOKENS}
    ends = [whole[index][3 * index % TOKENS] for index in range(0, len(prompts), 2)]  # at many places
    expected = {
        index: answer[: next((at for at, token in enumerate(answer) if token in ends), TOKENS)]
        for index, answer in whole.items()
    }
    assert len({len(answer) for answer in expected.values()}) > 3
    assert answers(ends, at_once) == expected
    assert at_once in (1, 3) or moved, "the last rows were moved together"
    feed.close()
