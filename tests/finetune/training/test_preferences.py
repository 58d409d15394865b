"""Training with stage dpo: it learns to prefer, goes on bit for bit, and several processes learn what one does."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from finetune.training.loop import train
from tests.support.finetune.pairs_data import DPO, write_pairs
from tests.support.finetune.processes import two_processes
from tests.support.finetune.runs import QLORA, adapter, start, wait_for_step
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SUPPORT

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make(recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    folder = str(write_pairs(tmp_path / "pairs"))
    return lambda **keys: recipe(**DPO | {"dataset_dir": folder} | keys)


@pytest.mark.parametrize(
    "keys",
    [{}, QLORA, {"pref_loss": "ipo", "learning_rate": 5e-4}, {"pref_loss": "simpo"}, {"pref_loss": "orpo"}],
    ids=str,
)
def test_it_learns_to_prefer(keys: dict[str, Any], make: MakeRecipe, tmp_path: Path) -> None:
    result = train(make(max_steps=12, val_size=6, eval_strategy="steps", eval_steps=6, **keys))
    records = read_log(tmp_path / "out" / "trainer_log.jsonl")
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "eval_loss" in record]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
    assert steps[-1]["rewards/accuracies"] >= 0.75
    assert validations[-1]["eval_loss"] < validations[0]["eval_loss"] or keys.get("pref_loss") == "ipo"
    assert result.preference_accuracy == validations[-1]["eval_rewards/accuracies"]
    assert result.reward_margin == validations[-1]["eval_rewards/margins"]


def test_before_the_first_step_nothing_is_preferred(make: MakeRecipe, tmp_path: Path) -> None:
    train(make(max_steps=1))
    (record,) = read_log(tmp_path / "out" / "trainer_log.jsonl")
    assert record["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert record["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_an_adapter_that_was_trained_before_is_the_reference(make: MakeRecipe, tmp_path: Path) -> None:
    rows = [ask("what color is the shape?", "red", number) for number in range(8)]
    write_dataset(tmp_path / "pairs", rows, "shapes")
    train(make(stage="sft", dataset="shapes", output_dir=str(tmp_path / "first"), max_steps=6))
    after = make(adapter_name_or_path=str(tmp_path / "first"), max_steps=1)
    train(after)
    (record,) = read_log(tmp_path / "out" / "trainer_log.jsonl")
    assert record["loss"] == pytest.approx(math.log(2), abs=1e-5)


RESUMED = [QLORA | {"pref_ftx": 0.2}, {"additional_target": "embed_tokens", "lora_dropout": 0.2}]


@pytest.mark.parametrize("keys", RESUMED, ids=str)
def test_a_run_that_is_killed_goes_on_bit_for_bit(keys: dict[str, Any], make: MakeRecipe, tmp_path: Path) -> None:
    keys = keys | {"max_steps": 14, "save_steps": 2, "logging_steps": 1, "val_size": 4, "eval_strategy": "steps"}
    whole = make(output_dir=str(tmp_path / "whole"), **keys)
    train(whole)
    broken = make(output_dir=str(tmp_path / "broken"), **keys)
    process = start(broken, tmp_path / "broken.yaml")
    wait_for_step(process, tmp_path / "broken", 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = max(int(p.name.split("-")[1]) for p in (tmp_path / "broken").glob("checkpoint-*"))
    assert last < 14
    train(broken)
    assert adapter(tmp_path / "broken") == adapter(tmp_path / "whole")
    logs = [
        [{k: r[k] for k in r if "rewards" in k or "loss" in k} for r in read_log(tmp_path / name / "trainer_log.jsonl")]
        for name in ("broken", "whole")
    ]
    assert logs[0][-8:] == logs[1][-8:]


def test_a_checkpoint_of_another_loss_is_refused(make: MakeRecipe) -> None:
    train(make(max_steps=2))
    with pytest.raises(FinetuneError, match=r"checkpoint-2 was made with pref_beta 0\.5, now it is 0\.1"):
        train(make(max_steps=2, pref_beta=0.1, resume_from_checkpoint=True))


def test_two_processes_learn_what_one_with_twice_the_accumulation_does(make: MakeRecipe, tmp_path: Path) -> None:
    # 18 rows are 9 micro-batches: the last of an epoch's windows of 4 has none for the second process.
    keys = {
        "per_device_train_batch_size": 2, "max_steps": 7, "val_size": 6, "eval_strategy": "steps", "eval_steps": 2,
        "per_device_eval_batch_size": 2, "group_by_length": False, "quantization_bit": 4, "learning_rate": 1e-3,
    }  # fmt: skip
    two = make(output_dir=str(tmp_path / "two"), gradient_accumulation_steps=2, **keys)
    save_recipe(two, tmp_path / "two.yaml")
    (tmp_path / "jobs.json").write_text(json.dumps([{"recipe": str(tmp_path / "two.yaml"), "stop_after": None}]))
    said = two_processes(str(SUPPORT / "finetune" / "train_jobs.py"), str(tmp_path / "jobs.json"))
    assert [code for code, _, _ in said] == [0, 0], said
    train(make(output_dir=str(tmp_path / "one"), gradient_accumulation_steps=4, **keys))
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() < 1e-4, name
    logs = [read_log(tmp_path / name / "trainer_log.jsonl") for name in ("one", "two")]
    for mine, theirs in zip(*logs, strict=True):
        for key in mine:
            if "rewards" in key or "loss" in key:
                assert mine[key] == pytest.approx(theirs[key], abs=2e-4), key


def test_the_page_and_the_curves_show_rewards(make: MakeRecipe, tmp_path: Path) -> None:
    train(make(max_steps=3, plot_loss=True, val_size=4, eval_strategy="steps", eval_steps=2, sample_answers=2))
    assert (tmp_path / "out" / "training_rewards.png").stat().st_size > 1000
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Rewards by step" in page
    assert "preference accuracy" in page
    (first, *_) = (tmp_path / "out" / "sample_answers.jsonl").read_text().splitlines()
    assert "I think" not in first  # the label is the chosen answer, the question what came before it


def test_another_familys_model_is_refused(make: MakeRecipe, tmp_path: Path) -> None:
    from tests.support.finetune.other_families import other_folder

    with pytest.raises(FinetuneError, match="only the Qwen-VL families learn from preferences; set stage: sft"):
        train(make(model_name_or_path=str(other_folder("llava", tmp_path / "other"))))
