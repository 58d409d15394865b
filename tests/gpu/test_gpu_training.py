"""Training on a GPU: what has other code there than on a CPU, where the rest is tested."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

# `disabled` attention, as the flash kernel's backward pass adds up in an order that changes from run to run.
KEYS: dict[str, Any] = {
    "model_name_or_path": str(SHAPES_VL), "dataset": "shapes", "quantization_bit": 4, "lora_dropout": 0.1,
    "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3, "flash_attn": "disabled", "report_to": "none", "plot_loss": False, "lora_target": "all",
    "lora_rank": 64,
}  # fmt: skip


def tensors(state: Any) -> Iterator[Any]:
    """All tensors in nested dicts."""
    for value in state.values():
        if isinstance(value, dict):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield value


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_run_with_paged_8_bit_states_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    """Rank 64: bitsandbytes keeps the states of tensors under 4,096 elements in float32."""
    from finetune.recipe.load import make_recipe
    from finetune.training.loop import train

    data = write_dataset(tmp_path / "data", [ask("what color is the shape?", "red", number) for number in range(8)])
    keys = KEYS | {"dataset_dir": str(data), "optim": "paged_adamw_8bit", precision: True}
    train(make_recipe(keys | {"output_dir": str(tmp_path / "whole")}))
    state = torch.load(tmp_path / "whole/checkpoint-3/state.pt", map_location="cpu", weights_only=True)
    assert any(tensor.dtype == torch.uint8 for tensor in tensors(state["optimizer"]["state"]))
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "half/checkpoint-3")
    assert train(make_recipe(keys | {"output_dir": str(tmp_path / "half")})).steps == 6
    whole, half = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "half"))
    assert whole == half
