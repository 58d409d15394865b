"""The losses of preferences: against formulas written out, transformers' own forward pass and finite differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.datasets import load_rows
from finetune.encoding.encoded import split_pair
from finetune.families.preference import MEASURED, PairFeed, PreferenceLoss, reference_for
from finetune.families.preference_losses import Answers, preference_losses
from finetune.families.qwen_vl import QwenVL
from finetune.media.image_files import decode
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from tests.support.finetune.families import FAMILIES, family_folder, reference_positions
from tests.support.finetune.pairs_data import DPO, write_pairs
from tests.support.finetune.trl_pairs import BETA, GAMMA, MEANS, move
from tests.support.finetune.trl_pairs import write_pairs as write_trl_pairs
from tests.support.paths import SUPPORT

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
GOLDEN = json.loads((SUPPORT / "finetune/goldens/trl_preferences.json").read_text())["losses"]
LOSSES: list[dict[str, Any]] = [
    {"pref_loss": "sigmoid"},
    {"pref_loss": "sigmoid", "dpo_label_smoothing": 0.2, "pref_ftx": 0.3},
    {"pref_loss": "ipo"},
    {"pref_loss": "simpo", "simpo_gamma": 0.7},
    {"pref_loss": "orpo", "pref_ftx": 0.1},
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(keys: dict[str, Any], beta: float, chosen: float, rejected: float, n: int, m: int, ref: Any) -> float:
    """The loss of one pair as the papers write it. chosen, rejected: log-probabilities of answers of n and m tokens."""
    kind = keys["pref_loss"]
    if kind == "sigmoid":
        margin, smoothing = beta * ((chosen - ref[0]) - (rejected - ref[1])), keys.get("dpo_label_smoothing", 0.0)
        loss = -(1 - smoothing) * math.log(sigmoid(margin)) - smoothing * math.log(sigmoid(-margin))
    elif kind == "ipo":
        loss = ((chosen - ref[0]) / n - (rejected - ref[1]) / m - 1 / (2 * beta)) ** 2
    elif kind == "simpo":
        loss = -math.log(sigmoid(beta * chosen / n - beta * rejected / m - keys["simpo_gamma"]))
    else:
        odds = [math.exp(p) / (1 - math.exp(p)) for p in (chosen / n, rejected / m)]
        loss = -chosen / n - beta * math.log(sigmoid(math.log(odds[0] / odds[1])))
    return loss - keys.get("pref_ftx", 0.0) * chosen / n


@pytest.mark.parametrize("keys", LOSSES, ids=str)
def test_each_loss_is_its_papers_formula(keys: dict[str, Any], recipe: MakeRecipe) -> None:
    numbers = torch.Generator().manual_seed(1)
    chosen, rejected, *ref = (-12 * torch.rand(4, 7, generator=numbers, dtype=torch.float64) - 0.1).unbind()
    n, m = torch.tensor([1, 2, 3, 4, 5, 6, 30]), torch.tensor([9, 1, 2, 2, 7, 1, 3])
    made = recipe(stage="dpo", pref_beta=0.3, **keys)
    losses, _, _ = preference_losses(Answers(chosen, n), Answers(rejected, m), *ref, made)
    expected = [
        by_hand(keys, 0.3, *(float(v[i]) for v in (chosen, rejected)), int(n[i]), int(m[i]), [float(r[i]) for r in ref])
        for i in range(7)
    ]
    assert torch.allclose(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-9)


def test_an_answer_that_is_certain_has_a_finite_loss_and_gradient(recipe: MakeRecipe) -> None:
    certain = torch.zeros(1, requires_grad=True)
    losses, _, _ = preference_losses(
        Answers(certain, torch.tensor([3])), Answers(torch.tensor([-900.0]), torch.tensor([3])), None, None,
        recipe(stage="dpo", pref_loss="orpo"),
    )  # fmt: skip
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(certain.grad).all()


class Parts:
    """A family's tiny model with adapters, and the pairs for it."""

    def __init__(self, make: MakeRecipe, tmp_path: Path, family: str = "qwen3_vl", **keys: Any) -> None:
        self.folder = family_folder(family, tmp_path / family)
        write_pairs(tmp_path / "data")
        self.recipe = make(**DPO | {"model_name_or_path": str(self.folder)} | keys)
        folder = open_base(self.recipe)
        self.reader = QwenVL().read(folder, self.recipe)
        self.data = load_rows("pairs", self.recipe).rows
        self.rows = self.reader.encoder.encode(self.data)
        self.base = load_base(folder, self.recipe, CPU, torch.float32)
        self.model = make_trainable(self.base, self.recipe)
        self.reference = reference_for(self.model, self.recipe)
        self.feed = PairFeed(self.base, self.reader, [image for row in self.rows for image in row.images], False, 1)
        self.loss = PreferenceLoss(self.base, self.recipe, self.reference)

    def move(self) -> None:
        """Adapters that are no longer what they were at the beginning."""
        torch.manual_seed(5)
        for p in self.model.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn_like(p)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_chats_of_a_pair_are_what_the_model_would_read_alone(
    family: str, recipe: MakeRecipe, tmp_path: Path
) -> None:
    parts = Parts(recipe, tmp_path, family)
    for row, whole in zip(parts.data, parts.rows, strict=True):
        for n, chat in enumerate(split_pair(whole)):
            messages = [*row.messages[:-2], row.messages[-2 + n]]
            text = parts.reader.processor.apply_chat_template(messages, tokenize=False)
            images = [decode(path) for path in row.images]
            theirs = parts.reader.processor(text=[text], images=images or None, return_tensors="pt")
            assert chat.ids.tolist() == theirs["input_ids"][0].tolist()
            grids = [tuple(grid) for grid in theirs["image_grid_thw"].tolist()] if images else []
            assert (chat.positions == reference_positions(family, parts.folder, chat.ids, grids)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_transformers_own_forward_pass(
    family: str, recipe: MakeRecipe, tmp_path: Path
) -> None:
    parts = Parts(recipe, tmp_path, family)
    parts.move()
    numbers = [0, 1, 2, 5]  # the third has no image, the fourth two
    batch, images = parts.feed.batch([parts.rows[n] for n in numbers])
    ours = parts.loss.log_probs(batch, images)
    theirs = []
    for n in range(2):
        for number in numbers:
            row = parts.data[number]
            text = parts.reader.processor.apply_chat_template(
                [*row.messages[:-2], row.messages[-2 + n]], tokenize=False
            )
            pictures = [decode(path) for path in row.images]
            inputs = parts.reader.processor(text=[text], images=pictures or None, return_tensors="pt")
            chat = split_pair(parts.rows[number])[n]
            logits = parts.base(**inputs).logits[0, :-1].log_softmax(-1)
            taken = logits.gather(1, inputs["input_ids"][0, 1:, None])[:, 0]
            theirs.append(taken[torch.from_numpy(chat.labelled[1:])].sum())
    assert torch.allclose(ours, torch.stack(theirs), rtol=1e-4)


@pytest.mark.parametrize("keys", [{}, {"additional_target": "embed_tokens"}, {"lora_dropout": 0.3}], ids=str)
def test_the_reference_is_the_model_before_training(keys: dict[str, Any], recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = Parts(recipe, tmp_path, **keys)
    batch, images = parts.feed.batch(parts.rows[:4])
    plain = Parts(recipe, tmp_path).loss.log_probs(batch, images)
    parts.move()
    drawn = torch.get_rng_state()
    moved = [p.clone() for p in parts.model.parameters() if p.requires_grad]
    with torch.no_grad(), parts.reference.active():
        found = parts.loss.log_probs(batch, images)
    assert torch.equal(drawn, torch.get_rng_state())
    assert torch.allclose(found, plain, rtol=1e-5)
    assert not torch.allclose(parts.loss.log_probs(batch, images), plain, rtol=1e-3)
    now = [p for p in parts.model.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(now, moved, strict=True))


@pytest.mark.parametrize("keys", LOSSES, ids=str)
def test_gradients_are_those_of_finite_differences(keys: dict[str, Any], recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = Parts(recipe, tmp_path, **keys)
    parts.model.double()
    parts.move()
    batch, images = parts.feed.batch(parts.rows[:3])
    images = images.double()
    trained = [p for p in parts.model.parameters() if p.requires_grad]

    def loss() -> Any:
        return parts.loss(batch, images)

    torch.manual_seed(2)
    direction = [torch.randn_like(p) for p in trained]
    gradients = torch.autograd.grad(loss(), trained)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    values = []
    for step in (1e-4, -2e-4):
        for p, d in zip(trained, direction, strict=True):
            p.data += step * d
        values.append(loss().detach())
    assert torch.allclose(slope.to(values[0]), (values[0] - values[1]) / 2e-4, rtol=2e-2)


def test_images_of_a_pair_go_through_the_tower_once(recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = Parts(recipe, tmp_path)
    seen: list[int] = []
    parts.base.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    feed = PairFeed(parts.base, parts.reader, parts.rows[5].images, False, 1)
    batch, images = feed.batch([parts.rows[5]])
    parts.loss(batch, images).backward()
    assert seen == [2]


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "simpo", "orpo"])
def test_losses_and_rewards_are_trls(name: str, recipe: MakeRecipe, tmp_path: Path) -> None:
    golden = GOLDEN[name]
    path = tmp_path / "pairs.jsonl"
    write_trl_pairs(path)
    keys = {"pref_loss": name, "pref_beta": BETA, "simpo_gamma": GAMMA}
    made = recipe(stage="dpo", dataset=str(path), lora_rank=4, **keys)
    folder = open_base(made)
    reader = QwenVL().read(folder, made)
    rows = reader.encoder.encode(load_rows(str(path), made).rows)
    base = load_base(folder, made, CPU, torch.float32)
    model = make_trainable(base, made)
    loss = PreferenceLoss(base, made, reference_for(model, made))
    move(model)
    ours = loss(*PairFeed(base, reader, [image for row in rows for image in row.images], False, 1).batch(rows)) / len(
        rows
    )
    assert ours.item() == pytest.approx(golden["loss"], rel=1e-4)
    for key, value in zip(MEASURED, loss.measured, strict=True):
        assert value / len(rows) == pytest.approx(golden[key], rel=1e-4), key


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_losses_of_given_log_probabilities_are_trls(name: str, recipe: MakeRecipe) -> None:
    made = recipe(stage="dpo", pref_loss=name, pref_beta=BETA, simpo_gamma=GAMMA)
    chosen, rejected = (Answers(torch.tensor(means), torch.ones(4)) for means in MEANS)
    losses, _, _ = preference_losses(chosen, rejected, None, None, made)
    assert losses.tolist() == pytest.approx(GOLDEN[name]["losses"], rel=1e-5)
