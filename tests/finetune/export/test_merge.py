from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.export import merge as merge_module
from finetune.export.merge import merge
from finetune.model import changes
from finetune.model.base import load_base
from finetune.model.changes import base_tensor
from finetune.model.folder import open_base
from finetune.model.trained import load_trained
from finetune.recipe.schema import Recipe
from finetune.training.loop import train
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.adapters import CPU, random_adapter
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def exported(recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe for merging a random adapter, made with the given keys."""

    def make(**keys: Any) -> Recipe:
        made = recipe(**keys)
        path = random_adapter(made, tmp_path / "adapter")
        return made.model_copy(update={"adapter_name_or_path": str(path), "export_dir": str(tmp_path / "merged")})

    return make


def rewrite(adapter: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


MERGED = [{}, {"use_rslora": True}, {"lora_target": "q_proj,down_proj", "lora_alpha": 3}, {"use_dora": True}]


@pytest.mark.parametrize("keys", MERGED)
def test_merged_weights_are_pefts(exported: MakeRecipe, keys: dict[str, Any]) -> None:
    recipe = exported(**keys)
    merged = load_file(merge(recipe) / "model.safetensors")
    base = load_base(open_base(recipe), recipe, CPU, torch.float32)
    reference = load_trained(base, str(recipe.adapter_name_or_path)).merge_and_unload().state_dict()
    original = load_file(SHAPES_VL / "model.safetensors")
    changed = {name for name in merged if not torch.equal(merged[name], original[name])}
    assert len(changed) == (28 if "lora_target" not in keys else 8)
    for name, tensor in merged.items():
        assert tensor.dtype == original[name].dtype
        difference = (reference[name].to(tensor.dtype).float() - tensor.float()).abs()
        spacing = torch.finfo(tensor.dtype).eps * reference[name].abs() + 1e-30
        assert (difference <= spacing).all(), name  # one unit in the last place


def test_everything_else_is_the_bases(exported: MakeRecipe) -> None:
    target = merge(exported())
    base = {path.name: path for path in SHAPES_VL.iterdir() if path.is_file()}
    assert {path.name for path in target.iterdir()} == base.keys() | {"lensmith.json", "README.md"}
    for name, path in base.items():
        if name not in ("model.safetensors", "README.md"):
            assert (target / name).read_bytes() == path.read_bytes()
    ours, theirs = ModelFolder.open(target).tensors, ModelFolder.open(SHAPES_VL).tensors
    assert [(n, t.dtype, t.shape, t.offsets) for n, t in ours.items()] == [
        (n, t.dtype, t.shape, t.offsets) for n, t in theirs.items()
    ]
    provenance = json.loads((target / "lensmith.json").read_text())
    assert provenance["base"]["fingerprint"] == ModelFolder.open(SHAPES_VL).fingerprint()
    assert provenance["delta_norm"] > 0


def test_the_card_is_the_merged_models_own(recipe: MakeRecipe, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(SHAPES_VL, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# The base's own praise\n")
    made = recipe(model_name_or_path=str(base), max_steps=2)
    train(made)
    keys = {"adapter_name_or_path": str(tmp_path / "out"), "export_dir": str(tmp_path / "merged")}
    card = (merge(made.model_copy(update=keys)) / "README.md").read_text()
    assert "praise" not in card
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "base")
    environment = json.loads((tmp_path / "out/environment.json").read_text())
    assert environment["data_sha256"] in card
    assert ModelFolder.open(base).fingerprint() in card
    assert "max_steps: 2" in card
    (base / "README.md").write_bytes(b"---\n[: \xff\n---")
    assert "not stated" in (merge(made.model_copy(update=keys)) / "README.md").read_text()


def test_shards_stay_shards(exported: MakeRecipe, tmp_path: Path) -> None:
    recipe = exported()
    sharded = tmp_path / "sharded"
    shutil.copytree(SHAPES_VL, sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"stale weights")
    names = sorted(tensors)
    weight_map = {}
    for number, half in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, sharded / file)
        weight_map |= dict.fromkeys(half, file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole = load_file(merge(recipe) / "model.safetensors")
    target = merge(recipe.model_copy(update={"model_name_or_path": str(sharded)}))
    assert sorted(path.name for path in target.glob("*.safetensors")) == sorted(set(weight_map.values()))
    assert not (target / "pytorch_model.bin").exists()
    for name, file in weight_map.items():
        assert torch.equal(load_file(target / file)[name], whole[name])


@pytest.mark.parametrize("gigabytes", [0.001, 0.004, 1])
def test_export_size_cuts_new_shards(exported: MakeRecipe, tmp_path: Path, gigabytes: float) -> None:
    recipe = exported()
    whole = load_file(merge(recipe) / "model.safetensors")
    target = merge(recipe.model_copy(update={"export_size": gigabytes}))
    folder = ModelFolder.open(target)
    assert len(folder.shards) >= {0.001: 11, 0.004: 3, 1: 1}[gigabytes]
    for shard in folder.shards:
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= gigabytes * 1e9
    assert folder.tensors.keys() == whole.keys()
    for name, info in folder.tensors.items():
        assert torch.equal(load_file(info.shard)[name], whole[name])
    from transformers import AutoModelForImageTextToText

    _, info = AutoModelForImageTextToText.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_trainings_image_limits_go_with_the_model(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(image_max_pixels=16384))
    target = merge(recipe(adapter_name_or_path=str(tmp_path / "out"), export_dir=str(tmp_path / "merged")))
    assert ModelFolder.open(target).image_pixel_limits == (ModelFolder.open(SHAPES_VL).image_pixel_limits[0], 16384)
    changed = json.loads((target / "preprocessor_config.json").read_text())
    assert {k: v for k, v in changed.items() if k != "size"} == {
        k: v for k, v in json.loads((SHAPES_VL / "preprocessor_config.json").read_text()).items() if k != "size"
    }


def test_transformers_loads_it_without_missing_or_unexpected_keys(exported: MakeRecipe) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    target = merge(exported())
    model, info = AutoModelForImageTextToText.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
    assert AutoProcessor.from_pretrained(target).chat_template


def test_adapter_on_base_and_merged_answer_alike(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(max_steps=30))
    adapter = {"adapter_name_or_path": str(tmp_path / "out")}
    target = merge(recipe(**adapter, export_dir=str(tmp_path / "merged")))
    evaluate(recipe(**adapter, output_dir=str(tmp_path / "first")))
    evaluate(recipe(model_name_or_path=str(target), output_dir=str(tmp_path / "second")))
    first, second = ((tmp_path / name / "generated_predictions.jsonl").read_text() for name in ("first", "second"))
    assert first == second
    assert "red" in first


def test_an_unused_tensor_is_refused(exported: MakeRecipe, tmp_path: Path) -> None:
    recipe = exported()

    def add(tensors: dict[str, Any]) -> None:
        for kind, shape in (("A", (4, 256)), ("B", (256, 4))):
            tensors[f"base_model.model.model.language_model.layers.9.mlp.up_proj.lora_{kind}.weight"] = torch.ones(
                shape
            )

    rewrite(tmp_path / "adapter", add)
    with pytest.raises(FinetuneError, match=r"The adapter changes model.language_model.layers.9.mlp.up_proj, which"):
        merge(recipe)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(next(n for n in t if "lora_B" in n)), "not its counterpart"),
        (lambda t: t.update({n: torch.zeros_like(t[n]) for n in t}), "changes nothing"),
        (lambda t: t.update({n: t[n] * 1e30 for n in t}), "cannot hold"),
        (lambda t: t.update({n: t[n].repeat(1, 2) for n in t if "lora_A" in n}), "does not fit the base's"),
        (lambda t: t.update({"base_model.model.lm_head.bias": torch.ones(4)}), "is not a LoRA matrix"),
        (lambda t: t.clear(), "has no tensors"),
    ],
)
def test_a_broken_adapter_is_refused(
    exported: MakeRecipe, tmp_path: Path, change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    recipe = exported()
    rewrite(tmp_path / "adapter", change)
    with pytest.raises(FinetuneError, match=complaint):
        merge(recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "data"]


def test_only_an_earlier_export_is_replaced(exported: MakeRecipe, tmp_path: Path) -> None:
    recipe = exported()
    (tmp_path / "merged").mkdir()
    merge(recipe)
    (tmp_path / "merged/model.safetensors").write_bytes(b"old")
    merge(recipe)
    assert ModelFolder.open(tmp_path / "merged").tensors
    for path in (tmp_path / "data", tmp_path / "adapter", SHAPES_VL):
        before = sorted(path.iterdir())
        with pytest.raises(FinetuneError, match="choose another folder"):
            merge(recipe.model_copy(update={"export_dir": str(path)}))
        assert sorted(path.iterdir()) == before


def test_a_failed_export_leaves_the_earlier_one(
    exported: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = exported()
    merge(recipe)
    before = (tmp_path / "merged/model.safetensors").read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_module, "_patch", fail)
    with pytest.raises(FinetuneError, match="No space left"):
        merge(recipe)
    assert (tmp_path / "merged/model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "data", "merged"]


def test_a_quantised_base_is_refused(exported: MakeRecipe, tmp_path: Path) -> None:
    recipe = exported()
    quantised = tmp_path / "quantised"
    shutil.copytree(SHAPES_VL, quantised)
    tensors = load_file(quantised / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.uint8)
    save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(FinetuneError, match="is U8; merge into the 16-bit base"):
        merge(recipe.model_copy(update={"model_name_or_path": str(quantised)}))


def test_names_of_both_eras_are_found() -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "visual.blocks.0.attn.qkv.bias"]
    folder: Any = SimpleNamespace(path=Path("base"), tensors=dict.fromkeys(names, SimpleNamespace(dtype="BF16")))
    for name, found in [
        ("model.language_model.layers.0.mlp.up_proj.weight", names[0]),
        ("model.visual.blocks.0.attn.qkv.bias", names[1]),
        (names[0], names[0]),
    ]:
        assert base_tensor(folder, name)[0] == found
    with pytest.raises(FinetuneError, match=r"which base does not have; is that its"):
        base_tensor(folder, "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("keys", [{}, {"use_dora": True}, {"lora_target": "q_proj"}])
def test_blocks_of_rows_change_nothing(
    exported: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    recipe = exported(**keys)
    whole = load_file(merge(recipe) / "model.safetensors")
    monkeypatch.setattr(changes, "BLOCK_BYTES", 10_000)
    blocks = merge(recipe.model_copy(update={"export_dir": str(tmp_path / "blocks")}))
    # Products of other shapes may be summed in another order: equal but for rounding to the weights' own dtype.
    torch.testing.assert_close(load_file(blocks / "model.safetensors"), whole)


def test_the_dequantized_base_is_what_training_saw(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Answers of the adapter on the 4-bit base, and of it merged into the dequantised one, have the same loss."""
    train(recipe(quantization_bit=4, max_steps=12))
    keys = {"adapter_name_or_path": str(tmp_path / "out"), "export_dir": str(tmp_path / "merged")}
    said = {}
    for merge_base in ("original", "dequantized"):
        console = Console(file=io.StringIO(), width=300)
        target = merge(recipe(**keys), console, merge_base)
        said[merge_base] = json.loads((target / "lensmith.json").read_text())
        (line,) = (line for line in console.file.getvalue().splitlines() if "Validation loss on shapes" in line)
        for name, value in said[merge_base]["validation_loss"].items():
            assert f"{name} {value:.4f}" in line
    original, dequantized = (said[name]["validation_loss"] for name in ("original", "dequantized"))
    assert original.keys() == {"merged (original)", "adapter on the 4-bit base"}
    assert dequantized.keys() == {"merged (dequantized)", "adapter on the original base"}
    assert dequantized["merged (dequantized)"] == pytest.approx(original["adapter on the 4-bit base"], rel=2e-3)
    assert original["merged (original)"] == pytest.approx(dequantized["adapter on the original base"], rel=2e-3)
    gap = abs(original["merged (original)"] - original["adapter on the 4-bit base"])
    assert gap > 10 * abs(dequantized["merged (dequantized)"] - original["adapter on the 4-bit base"])


def test_a_base_that_was_not_quantised_has_no_dequantized_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(max_steps=1))
    keys = {"adapter_name_or_path": str(tmp_path / "out"), "export_dir": str(tmp_path / "merged")}
    with pytest.raises(FinetuneError, match=r"out was not trained on a 4-bit base"):
        merge(recipe(**keys), merge_base="dequantized")
