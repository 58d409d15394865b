"""Training on a GPU: what has other code there than on a CPU, where the rest is tested."""

from __future__ import annotations

import gc
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


GRAPHS = KEYS | {
    "flash_attn": "auto",
    "fp16": True,
    "logging_steps": 1,
    "lora_rank": 8,
    "disable_gradient_checkpointing": False,
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Rows of several lengths, with one and two pictures and none."""
    chats = [ask("what color is the shape?" * (1 + number % 5), "red", number) for number in range(6)]
    chats += [ask("same color? " * number, "no", number, number + 1) for number in range(1, 5)]
    return str(write_dataset(tmp_path / "data", [*chats, ask("hello", "hi there"), ask("and now?", "bye")]))


def run(rows: str, output: Path, **keys: Any) -> tuple[list[float], str]:
    """The losses of a run's steps, and what it said."""
    import io

    from rich.console import Console

    from finetune.recipe.load import make_recipe
    from finetune.reporting.runlog import read_log
    from finetune.training.loop import train

    console = Console(file=io.StringIO(), width=1000)
    train(make_recipe(GRAPHS | {"dataset_dir": rows, "output_dir": str(output)} | keys), console)
    return [record["loss"] for record in read_log(output / "trainer_log.jsonl")], console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Attention whose backward pass always adds up in the same order."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_graphs_do_what_the_layers_do_bit_for_bit(rows: str, tmp_path: Path, monkeypatch: Any, dropout: float) -> None:
    from finetune.compute.graphs import Graphs

    graphs, said = run(rows, tmp_path / "graphs", lora_dropout=dropout)
    assert "CUDA graphs" in said
    assert "without CUDA graphs" not in said
    monkeypatch.setattr(Graphs, "run", lambda self, key, work: work())
    layers, _ = run(rows, tmp_path / "layers", lora_dropout=dropout)
    assert layers == graphs
    paths = [tmp_path / name / "adapter_model.safetensors" for name in ("graphs", "layers")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.usefixtures("repeatable")
def test_a_second_run_of_a_process_has_graphs_too(rows: str, tmp_path: Path) -> None:
    """Also where nothing is left of the first one's but what libraries took while they were captured."""
    first, _ = run(rows, tmp_path / "first", lora_dropout=0.1)
    gc.collect()
    torch.cuda.empty_cache()
    second, said = run(rows, tmp_path / "second", lora_dropout=0.1)
    assert "CUDA graphs" in said
    assert "without CUDA graphs" not in said
    assert first == second


@pytest.mark.usefixtures("repeatable")
def test_auto_tries_graphs_and_the_run_is_that_of_its_choice(rows: str, tmp_path: Path) -> None:
    from finetune.recipe.load import load_recipe

    keys = {"lora_dropout": 0.1, "disable_gradient_checkpointing": None, "gradient_accumulation_steps": 4}
    auto, said = run(rows, tmp_path / "auto", **keys | {"per_device_train_batch_size": "auto"})
    assert "tried: 4: " in said
    assert "Steps run as CUDA graphs" in said
    assert "without CUDA graphs" not in said
    chosen = load_recipe(tmp_path / "auto" / "recipe.yaml")
    keys |= {"per_device_train_batch_size": chosen.batch_size}
    keys |= {"gradient_accumulation_steps": chosen.gradient_accumulation_steps}
    plain, _ = run(rows, tmp_path / "plain", **keys)
    assert auto == plain


def test_losses_in_graphs_are_those_of_the_models_own_modules(rows: str, tmp_path: Path, monkeypatch: Any) -> None:
    from finetune.training.passes import graphs as passes

    keys = {"lora_dropout": 0.0, "max_steps": 30}
    graphs, _ = run(rows, tmp_path / "graphs", **keys)
    monkeypatch.setattr(passes, "why_not", lambda base: "this is a test")
    modules, said = run(rows, tmp_path / "modules", **keys)
    assert "this is a test" in said
    assert graphs == pytest.approx(modules, rel=0.02)


@pytest.mark.usefixtures("repeatable")
def test_a_run_in_graphs_goes_on_bit_for_bit(rows: str, tmp_path: Path) -> None:
    whole, _ = run(rows, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "half/checkpoint-3")
    half, _ = run(rows, tmp_path / "half")
    assert half[-3:] == whole[-3:]
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "half")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("repeatable")
def test_inputs_that_waited_in_host_memory_give_the_same_bits(rows: str, tmp_path: Path, monkeypatch: Any) -> None:
    from finetune.training.passes import graphs as passes

    waited, said = run(rows, tmp_path / "waited", lora_dropout=0.1)
    assert "inputs stay on the GPU" not in said
    monkeypatch.setattr(passes, "_host_memory", lambda *given: None)
    stayed, said = run(rows, tmp_path / "stayed", lora_dropout=0.1)
    assert "inputs stay on the GPU" in said
    assert waited == stayed
    paths = [tmp_path / name / "adapter_model.safetensors" for name in ("waited", "stayed")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("captured", [False, True])
def test_a_stack_in_host_memory_waits_for_its_copies(captured: bool) -> None:
    """Each tensor's memory is written over as soon as it is free, and large products keep the GPU busy meanwhile."""
    from finetune.compute.graphs import Graphs
    from finetune.compute.host_stack import HostMemory, HostStack

    device, count, side = torch.device("cuda", 0), 12, 2048
    memory = HostMemory(count, side * side, torch.float16, device)
    first = torch.zeros(side, side, device=device, dtype=torch.float16)
    found = torch.zeros(count, device=device)

    def work() -> None:
        x = first
        with HostStack(memory) as stack:
            for _ in range(count):
                stack.append(x)
                x = x + 1 + 0 * (x @ x).clamp(-1, 1)
            for number in reversed(range(count)):
                x = stack.pop()
                found[number] = (x + 0 * (x @ x).clamp(-1, 1)).float().mean()

    graphs = Graphs(device, 1)
    for start in range(3):
        first.fill_(start)
        graphs.run("work", work) if captured else work()
        assert found.tolist() == [start + number for number in range(count)]


def test_training_goes_on_where_a_graph_cannot_be_captured(rows: str, tmp_path: Path, monkeypatch: Any) -> None:
    from finetune.compute.graphs import Graphs

    def full(self: Any, work: Any) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    expected, _ = run(rows, tmp_path / "graphs")
    monkeypatch.setattr(Graphs, "_captured", full)
    losses, said = run(rows, tmp_path / "out")
    assert "without CUDA graphs: no memory is left" in said
    assert losses == pytest.approx(expected, rel=0.01)


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("invalid", [False, True])
def test_training_goes_on_where_a_capture_fails_half_way(
    rows: str, tmp_path: Path, monkeypatch: Any, dropout: float, invalid: bool
) -> None:
    """While layers' inputs are on their way; the steps are those of the layers without graphs, bit for bit.

    invalid: whether it cannot be ended either, as something waited for the GPU. The next run has graphs again.
    """
    from finetune.compute import decoder
    from finetune.compute.graphs import Graphs

    backward = decoder.layer_backward

    def fail(layer: Any, kept: Any, grad: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            if invalid:
                grad.sum().item()
            raise torch.OutOfMemoryError("no memory is left")
        return backward(layer, kept, grad)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "layer_backward", fail)
        losses, said = run(rows, tmp_path / "out", lora_dropout=dropout)
    assert f"without CUDA graphs: {'' if invalid else 'no memory is left'}" in said
    graphs, said = run(rows, tmp_path / "graphs", lora_dropout=dropout)
    assert "without CUDA graphs" not in said
    assert losses == graphs
    monkeypatch.setattr(Graphs, "run", lambda self, key, work: work())
    layers, _ = run(rows, tmp_path / "layers", lora_dropout=dropout)
    assert losses == layers


def test_the_tower_in_graphs_gives_the_same_features(rows: str, monkeypatch: Any) -> None:
    from rich.console import Console

    from finetune.compute import vision
    from finetune.families.features import FrozenFeatures
    from finetune.model.base import load_base
    from finetune.recipe.load import make_recipe
    from finetune.training.dataset import load_training_data

    recipe = make_recipe(GRAPHS | {"dataset_dir": rows, "output_dir": "unused"})
    data = load_training_data(recipe, Console(quiet=True))
    base = load_base(data.folder, recipe, torch.device("cuda", 0), torch.float16)
    features = FrozenFeatures(base, data.bank, data.processor, [0, 1, 2])
    expected = features.get([0, 1])
    for _ in range(6):
        assert torch.equal(features.get([0, 1]), expected)
    assert features.tower.graphs.works
    assert len(features.tower.graphs.graphs) == 1
    assert not torch.equal(features.get([1, 0]), expected)
    monkeypatch.setattr(vision, "LAYOUTS", 1)
    features.get([2])  # the layout of the others is forgotten, and its memory used again
    used = [torch.full((size,), -1, device="cuda") for size in (16, 64, 256, 1024, 4096) for _ in range(32)]
    assert torch.equal(features.get([0, 1]), expected)
    del used
    features.close()
