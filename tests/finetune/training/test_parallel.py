"""Two processes on the CPU, connected by Gloo as torchrun does it, against one process with the same global batch."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.recipe.load import make_recipe, save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from finetune.training.loop import train
from tests.support.finetune.processes import two_processes
from tests.support.finetune.shapes_data import COLOURS, ask, write_dataset
from tests.support.paths import SHAPES_VL, SUPPORT

MakeRecipe = Callable[..., Recipe]
# 18 training rows are 9 micro-batches: the last of an epoch's windows of 4 has none for the second process.
KEYS: dict[str, Any] = {
    "model_name_or_path": str(SHAPES_VL), "dataset": "shapes", "per_device_train_batch_size": 2, "max_steps": 7,
    "val_size": 0.25, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2, "save_steps": 100,
    "gradient_accumulation_steps": 2, "group_by_length": False, "lora_rank": 4, "lora_target": "q_proj,up_proj",
    "learning_rate": 1e-3, "logging_steps": 1, "report_to": "none", "plot_loss": False,
}  # fmt: skip
FULL = {"finetuning_type": "full", "freeze_vision_tower": False, "learning_rate": 1e-4}
SAME = {
    "ddp-qlora": {"quantization_bit": 4},
    "ddp-full-with-vision": FULL,
    "fsdp-lora": {"fsdp": "full_shard", "load_best_model_at_end": True},
    "fsdp-full-with-vision": FULL | {"fsdp": "full_shard"},
    # Every third row has no image, so that one process has some where the other has none.
    "fsdp-full-mixed": FULL
    | {"fsdp": "full_shard", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "fsdp-lora-mixed": {
        **{"fsdp": "full_shard", "freeze_vision_tower": False, "lora_target": "all"},
        **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    },
}
STEPS, STOP = 20, 5
LONG = {"max_steps": STEPS, "val_size": 0.0, "eval_strategy": "no"}
BROKEN = {"ddp": LONG | {"lora_dropout": 0.2}, "fsdp": LONG | {"fsdp": "full_shard"}}


class Pair:
    """The jobs of this file, done by one pair of processes: most of a run on tiny models is importing torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [
            ask(question, answer, number)
            for number, colour in enumerate(COLOURS * 2)
            for question, answer in (("color?", colour), ("is it red?", "no"), ("what is it?", f"a {colour} rectangle"))
        ]
        write_dataset(folder / "data", rows)
        mixed = [row if number % 3 else ask("hello", "hi") for number, row in enumerate(rows)]
        write_dataset(folder / "mixed", mixed)
        write_dataset(folder / "torn", rows)
        image = folder / "torn/images/4.png"
        image.write_bytes(image.read_bytes()[:60])
        jobs = [(name, self.recipe(name, **keys), None) for name, keys in SAME.items()]
        for name, keys in BROKEN.items():
            broken = self.recipe(f"broken-{name}", **keys)
            jobs += [(f"stopped-{name}", broken, STOP), (f"resumed-{name}", broken, None)]
            jobs += [(f"unbroken-{name}", self.recipe(f"unbroken-{name}", **keys), None)]
        jobs.append(("error", self.recipe("error", lora_target="z_proj"), None))
        jobs.append(("torn", self.recipe("torn-out", **FULL | LONG | {"dataset_dir": str(folder / "torn")}), None))
        written = []
        for name, recipe, stop in jobs:
            save_recipe(recipe, folder / f"{name}.yaml")
            written.append({"recipe": str(folder / f"{name}.yaml"), "stop_after": stop})
        (folder / "jobs.json").write_text(json.dumps(written))
        script = str(SUPPORT / "finetune" / "train_jobs.py")
        self.said = two_processes(script, str(folder / "jobs.json"), measured=True)
        assert [code for code, _, _ in self.said] == [0, 0], "\n".join(errors for _, _, errors in self.said)
        names = [name for name, _, _ in jobs]
        self.results = [
            dict(zip(names, json.loads((folder / f"jobs.json.{rank}").read_text()), strict=True)) for rank in range(2)
        ]

    def recipe(self, name: str, **keys: Any) -> Recipe:
        return make_recipe(
            KEYS
            | {
                "dataset_dir": str(self.folder / ("mixed" if "mixed" in name else "data")),
                "output_dir": str(self.folder / name),
            }
            | keys
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


def weights(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.safetensors")
    return dict(load_file(file))


def losses(folder: Path) -> list[float]:
    return [record.get("loss", record.get("eval_loss")) for record in read_log(folder / "trainer_log.jsonl")]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_learn_what_one_does(pair: Pair, name: str) -> None:
    two, one = pair.folder / name, pair.folder / f"{name}-alone"
    alone = train(pair.recipe(one.name, **SAME[name] | {"fsdp": None, "gradient_accumulation_steps": 4}))
    for rank in range(2):
        result = pair.results[rank][name]
        assert (result["steps"], result["samples"], result["processes"]) == (7, alone.samples, 2)
        assert result["eval_loss"] == pytest.approx(alone.eval_loss, rel=1e-4)
    assert len(losses(one)) == 7 + 4
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    theirs, ours = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    distance = sum((ours[n] - theirs[n]).square().sum() for n in ours) / sum(t.square().sum() for t in theirs.values())
    assert distance < 1e-5


@pytest.mark.parametrize("name", BROKEN)
def test_processes_stop_together_and_go_on_bit_for_bit(pair: Pair, name: str) -> None:
    """One of them was told to stop, both stopped after the same step."""
    stopped, resumed = ([results[f"{kind}-{name}"] for results in pair.results] for kind in ("stopped", "resumed"))
    assert [result["interrupted"] for result in stopped] == [signal.SIGTERM] * 2
    assert STOP <= stopped[0]["steps"] == stopped[1]["steps"] < STEPS
    assert [(result["steps"], result["interrupted"]) for result in resumed] == [(STEPS, None)] * 2
    broken, unbroken = pair.folder / f"broken-{name}", pair.folder / f"unbroken-{name}"
    assert losses(broken) == losses(unbroken)
    file = "adapter_model.safetensors"
    assert (broken / file).read_bytes() == (unbroken / file).read_bytes()


def test_the_first_process_speaks_alone(pair: Pair) -> None:
    assert "no linear 'z_proj'" in pair.results[0]["error"]["error"]
    assert pair.results[1]["error"] == {"error": None}
    assert "2 processes, DDP" in pair.said[0][2]
    assert pair.said[1][1:] == ("", "")


def test_a_broken_image_of_one_process_saves_the_step_of_both(pair: Pair) -> None:
    first, second = (results["torn"] for results in pair.results)
    assert "4.png" in first["error"]
    assert second == {"error": None}
    (saved,) = (pair.folder / "torn-out").glob("checkpoint-*")
    assert f"Step {saved.name.rpartition('-')[2]} is saved; the same command goes on from there." in first["error"]


def test_fsdp_without_torchrun_is_explained(pair: Pair) -> None:
    with pytest.raises(FinetuneError, match=r"fsdp needs several processes: torchrun --nproc-per-node"):
        train(pair.recipe("single", fsdp="full_shard"))
