"""A trial trains rows, and leaves nothing of it behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune.compute.host_stack import HostMemory
from finetune.encoding.encoded_rows import lengths_of
from finetune.families.registry import training_family
from finetune.memory.plan import Plan, set_checkpointing
from finetune.memory.trial import Trial, Tried, quickest
from finetune.model.base import load_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from finetune.training.order import epoch_batches
from finetune.training.passes import graphs
from finetune.training.passes.graphs import GraphPasses
from finetune.training.passes.modules import ModulePasses

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Only what nothing refers to is freed, as in a run, where the collector comes when it comes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize(("size", "kept"), [(1, 4), (6, 0), (24, 2)])
def test_a_trial_leaves_the_run_as_it_was(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, size: int, kept: int, layered: bool
) -> None:
    monkeypatch.setattr(graphs, "_host_memory", HostMemory)
    made = recipe(lora_dropout=0.1, eval_dataset=None, per_device_train_batch_size=size)
    data = load_training_data(made, QUIET)
    base = load_base(data.folder, made, CPU, torch.float32)
    model = make_trainable(base, made)
    family = training_family(model, data.folder, made)
    modules = ModulePasses(family.loss(base, 0.0), nullcontext(), torch.amp.GradScaler("cpu", enabled=False), 1)
    rows, left = [], []

    def prepare(plan: Plan) -> Tried:
        feed = family.feed(base, data, [])
        set_checkpointing(base, plan)
        passes = GraphPasses(base, made, data, modules, kept, QUIET, feed) if layered else modules

        def learn(batch: Any, images: Any) -> None:
            rows.append(len(batch.ids))
            passes.learn(batch, images, 1.0, True)
            assert any(p.grad is not None and p.grad.any() for p in model.parameters())

        left.extend(weakref.ref(thing) for thing in (feed, *([passes, passes.buffers.features] if layered else [])))
        return Tried(feed, epoch_batches(lengths_of(data.rows), size, 1, 0, True), learn)

    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    state = torch.get_rng_state()
    assert Trial(data.rows, CPU, prepare, model.zero_grad).speed(Plan(size, 1, kept, 4, 0.0)) > 0
    assert set(rows) == {size}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    layers = base.model.language_model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [number < 4 - kept for number in range(4)]
    assert [reference() for reference in left] == [None] * len(left)


class Feed:
    """Makes of rows their sources."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def batch(self, rows: Any) -> Any:
        self.asked.append([row.source for row in rows])
        return self.asked[-1], None

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.usefixtures("uncollected")
def test_a_plan_that_does_not_fit_leaves_nothing_to_the_next(recipe: Callable[..., Recipe]) -> None:
    data = load_training_data(recipe(eval_dataset=None), QUIET)
    living: list[Any] = []

    def prepare(plan: Plan) -> Tried:
        assert [reference() for reference in living] == [None] * len(living)
        feed: Any = Feed()
        living.append(weakref.ref(feed))

        def learn(batch: Any, images: Any) -> None:
            if plan.size > 2:
                raise torch.OutOfMemoryError

        return Tried(feed, epoch_batches(lengths_of(data.rows), plan.size, 1, 0, True), learn)

    plans = [Plan(size, 8 // size, 0, 4, 0.0) for size in (8, 4, 2)]
    plan, measured = quickest(plans, Trial(data.rows, CPU, prepare, lambda: None))
    assert plan.size == 2
    assert measured.startswith("tried: 8 rows at once do not fit, 4 rows at once do not fit, 2: ")
    assert len(living) == 3


@pytest.mark.parametrize("grouped", [True, False])
def test_what_is_timed_are_micro_batches_of_training_and_each_was_done_once_before(
    recipe: Callable[..., Recipe], grouped: bool
) -> None:
    data = load_training_data(recipe(eval_dataset=None), QUIET)
    lengths, done = lengths_of(data.rows), []
    batches = epoch_batches(lengths, 4, 1, 0, grouped)
    feed: Any = Feed()
    tried = Tried(feed, batches, lambda batch, images: done.append(batch))
    Trial(data.rows, CPU, lambda plan: tried, lambda: None).speed(Plan(4, 2, 0, 4, 0.0))
    asked, longest = feed.asked, sorted(lengths.tolist())[-4:]
    assert sorted(len(row) for row in data.rows if row.source in asked[0]) == longest
    epoch = [[data.rows[number].source for number in numbers] for numbers in batches]
    assert all(batch in epoch for batch in asked[1:])
    assert done == [asked[0], *(batch for batch in asked[1:] for _ in range(2))]
