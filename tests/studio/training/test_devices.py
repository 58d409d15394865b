"""What a run computes on: GPUs as nvidia-smi tells them, and what a goal makes of their memory."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from studio.jobs.devices import Devices
from studio.training.goals import goal_values
from tests.support.paths import SHAPES_VL


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_listed_with_their_free_memory(client: TestClient, shapes: str) -> None:
    page = client.get("/train").text
    assert "0: Tesla T4" in page
    assert "13.7 of 15.0 GiB are free" in page
    assert "1: NVIDIA H100 80GB HBM3" in page


@pytest.mark.usefixtures("two_gpus")
def test_a_run_uses_the_gpus_that_are_ticked(client: TestClient, shapes: str) -> None:
    form = {"data": shapes, "model": str(SHAPES_VL), "name": "first"}
    one = client.post("/train/preview", data=form | {"gpus": "1"}).json()
    assert "CUDA_VISIBLE_DEVICES=1 lensmith train runs/first/recipe.yaml" in one["command"]
    both = client.post("/train/preview", data=form | {"gpus": ["0", "1"]}).json()
    assert "CUDA_VISIBLE_DEVICES=0,1 torchrun --standalone --nproc-per-node 2 -m lensmith train" in both["command"]
    gone = client.post("/train/preview", data=form | {"gpus": "7"}).json()
    assert gone["problems"]["gpus"].startswith("One of the GPUs that were ticked is not there")
    assert one["problems"] == both["problems"] == {}


def test_cards_are_called_as_check_calls_them(two_gpus: None) -> None:
    assert [device.card for device in Devices().list()] == ["t4", "h100"]


def test_weights_are_in_4_bits_on_a_gpu_unless_the_best_fits_in_16() -> None:
    def bits(goal: str, card_gib: float | None) -> int | None:
        values = goal_values(goal, rows=1000, parameters=2_000_000_000, card_gib=card_gib, validation=None)
        found: int | None = values.get("quantization_bit")
        return found

    assert bits("balanced", 80.0) == 4
    assert bits("best", 80.0) is None
    assert bits("best", 8.0) == 4
    assert bits("balanced", None) is None, "a processor does not quantise"


@pytest.mark.parametrize("rows", [1, 3, 19, 20, 500])
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_a_step_has_rows_for_each_gpu_however_small_the_data(rows: int, gpus: int) -> None:
    values = goal_values("balanced", rows=rows, parameters=0, card_gib=80.0, validation=None, gpus=gpus)
    assert values["per_device_train_batch_size"] >= 1
    assert values["gradient_accumulation_steps"] >= 1
    assert ("val_size" in values) == (rows >= 20)
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * gpus <= max(16, 2 * gpus)
