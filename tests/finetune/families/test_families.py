"""Each supported family: ids, positions, gradients, answers and merged names, against transformers' own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from finetune.data.datasets import load_rows
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.export.merge import merge
from finetune.families.batch import collate_train
from finetune.families.features import FrozenFeatures, TrainedVision
from finetune.families.forward import LabelLoss
from finetune.media.image_files import decode
from finetune.model.base import four_bit_layers, load_base
from finetune.model.folder import open_base
from finetune.model.targets import add_adapters, make_trainable
from finetune.model.trained import load_trained
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from finetune.training.loop import train
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.families import FAMILIES, assert_merged_as_peft_does, family_folder, reference_positions
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe_of(recipe: MakeRecipe, dataset: Path, family: str, tmp_path: Path) -> MakeRecipe:
    """Recipes for a tiny model of the family and chats of no, one and two images, two turns, a system prompt."""
    chats = [
        ask("what color is the shape?", "red", 0),
        ask("same color?", "no", 1, 3),
        ask("hello", "hi there"),
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>color?"},
                {"from": "gpt", "value": "red"},
                {"from": "human", "value": "and here<image>?"},
                {"from": "gpt", "value": "blue"},
            ],
            "images": ["images/2.png", "images/7.png"],
        },
    ]
    write_dataset(dataset, chats)
    folder = family_folder(family, tmp_path / family)
    return lambda **keys: recipe(**{"model_name_or_path": str(folder), "per_device_train_batch_size": 2} | keys)


def test_ids_are_the_processors(recipe_of: MakeRecipe) -> None:
    data = load_training_data(recipe_of(), Console(quiet=True))
    prove_encoding(load_rows("shapes", recipe_of()).rows, data.rows, data.processor, data.bank)
    answers = [data.processor.tokenizer.decode(row.ids[row.labelled]) for row in data.rows]
    assert answers == [
        "red<|im_end|>\n", "no<|im_end|>\n", "hi there<|im_end|>\n", "red<|im_end|>\nblue<|im_end|>\n",
    ]  # fmt: skip


def test_positions_are_the_models(recipe_of: MakeRecipe, family: str) -> None:
    data = load_training_data(recipe_of(), Console(quiet=True))
    for row in data.rows:
        grids = [data.bank.grids[i] for i in row.images]
        assert np.array_equal(reference_positions(family, data.folder.path, row.ids, grids), row.positions)


def test_the_loss_is_the_models(recipe_of: MakeRecipe) -> None:
    data = load_training_data(recipe_of(), Console(quiet=True))
    base = load_base(data.folder, recipe_of(), CPU, torch.float32)
    used = [image for row in data.rows for image in row.images]
    features = FrozenFeatures(base, data.bank, data.processor, used, reused=True)
    for row, ours in zip(load_rows("shapes", recipe_of()).rows, data.rows, strict=True):
        images = [decode(path) for path in row.images] or None
        text = data.processor.apply_chat_template(row.messages, tokenize=False)
        inputs = data.processor(text=[text], images=images, return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[0, ~torch.from_numpy(ours.labelled)] = -100
        theirs = base(**inputs, labels=labels).loss
        batch = collate_train([ours], CPU)
        loss = LabelLoss(base)(batch, features.get(batch.images)) / len(batch.labels)
        assert torch.allclose(loss, theirs, rtol=1e-4), row.source


def test_four_bit_adapters_learn(recipe_of: MakeRecipe) -> None:
    made = recipe_of(quantization_bit=4)
    data = load_training_data(made, Console(quiet=True))
    base = load_base(data.folder, made, CPU, torch.float32)
    names = four_bit_layers(base)
    assert names
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert len(names) == 7 * len(base.model.language_model.layers)
    model = add_adapters(base, made)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    features = FrozenFeatures(
        base, data.bank, data.processor, [i for row in data.rows for i in row.images], reused=True
    )
    batch = collate_train(data.rows, CPU)
    for _ in range(2):
        optimizer.zero_grad()
        LabelLoss(base)(batch, features.get(batch.images)).backward()
        optimizer.step()
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(names)
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for _, gradient in trained)


SEES = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
METHODS: dict[str, dict[str, Any]] = {
    "lora-everywhere": {**SEES, "quantization_bit": 4},
    "lora-vision": {"freeze_vision_tower": False, "freeze_language_model": True},
    "lora-regex": {"lora_target": r".*layers\.1\..*(q|v)_proj"},
    "lora-embeddings": {"lora_target": "q_proj", "additional_target": "embed_tokens,lm_head"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "freeze-mlp": {"finetuning_type": "freeze", "freeze_trainable_modules": "mlp"},
    "full": {"finetuning_type": "full"},
    "full-projector": {
        "finetuning_type": "full", "freeze_language_model": True, "freeze_multi_modal_projector": False,
    },
    "full-everywhere": {**SEES, "finetuning_type": "full"},
}  # fmt: skip


def expected(base: Any, method: str) -> set[str]:
    """The trained parameters of each method, in other words than the code's."""
    parameters = [name for name, _ in base.named_parameters()]
    last = len(base.model.language_model.layers) - 1
    language = {name for name in parameters if not name.startswith("model.visual.")}
    projector = {name for name in parameters if name.startswith("model.visual.merger.")}
    return {
        "freeze": {name for name in language if f"layers.{last}." in name},
        "freeze-mlp": {
            name for name in language if ".mlp." in name and (f".{last}." in name or f".{last - 1}." in name)
        },
        "full": language,
        "full-projector": projector,
        "full-everywhere": set(parameters),
    }[method]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_says(recipe_of: MakeRecipe, method: str) -> None:
    """After a step or two every trained parameter has a finite gradient that is not zero, and no other has one."""
    made = recipe_of(**METHODS[method])
    data = load_training_data(made, Console(quiet=True))
    base = load_base(data.folder, made, CPU, torch.float32)
    assert all("language_model" in name for name in four_bit_layers(base))
    model = make_trainable(base, made)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if method.startswith("lora"):
        wrapped = [name.partition(".lora_")[0] for name in trained if ".lora_" in name]
        assert bool([name for name in wrapped if "language_model" in name]) == (method != "lora-vision")
        assert bool([name for name in wrapped if "visual.blocks" in name]) == ("freeze_vision_tower" in METHODS[method])
        assert bool([name for name in wrapped if "visual.merger" in name]) == (method == "lora-everywhere")
        assert not [name for name in wrapped if "patch_embed" in name]
        if method == "lora-regex":
            assert {name.rpartition(".")[2] for name in wrapped} == {"q_proj", "v_proj"}
            assert all("layers.1." in name for name in wrapped)
        whole = [name for name in trained if ".lora_" not in name]
        assert len(whole) == (method == "lora-embeddings")
        assert (model.base_model.model.lm_head.weight is trained[whole[0]]) if whole else True  # still tied
    else:
        assert trained.keys() == expected(base, method)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    vision = TrainedVision(base, CPU, data.bank, data.processor)
    batch = collate_train(data.rows, CPU)
    optimizer = torch.optim.SGD(trained.values(), lr=1e-3)
    found: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        LabelLoss(base)(batch, vision.get(batch.images)).backward()
        assert all(torch.isfinite(p.grad).all() for p in trained.values() if p.grad is not None)
        found |= {name for name, p in trained.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert trained.keys() - found == set()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_the_line_ends_in_the_bases_own_names(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """Train, merge, and answer with both; the merged weights are PEFT's, under the names that the base's files have."""
    train(recipe_of(quantization_bit=4, max_steps=12, learning_rate=0.01))
    adapter = {"adapter_name_or_path": str(tmp_path / "out")}
    target = merge(recipe_of(**adapter, export_dir=str(tmp_path / "merged")))
    folder = open_base(recipe_of())
    assert ModelFolder.open(target).tensors.keys() == folder.tensors.keys()
    assert (target / "config.json").read_bytes() == (folder.path / "config.json").read_bytes()
    assert_merged_as_peft_does(target, recipe_of, tmp_path / "out")


@pytest.mark.parametrize("method", ["lora-everywhere", "lora-embeddings", "freeze", "full-everywhere"])
def test_every_method_merges_into_the_bases_own_names(recipe_of: MakeRecipe, tmp_path: Path, method: str) -> None:
    """The merged folder, read by transformers, is the base with what was trained."""
    from transformers import AutoModelForImageTextToText

    keys = METHODS[method] | {"quantization_bit": None, "learning_rate": 1e-2, "save_steps": 2}
    train(recipe_of(**keys))
    target = merge(recipe_of(adapter_name_or_path=str(tmp_path / "out"), export_dir=str(tmp_path / "merged")))
    folder = open_base(recipe_of())
    assert ModelFolder.open(target).tensors.keys() == folder.tensors.keys()
    assert (target / "config.json").read_bytes() == (folder.path / "config.json").read_bytes()
    merged, info = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    reference = load_trained(load_base(folder, recipe_of(), CPU, torch.float32), tmp_path / "out")
    if method.startswith("lora"):
        reference = reference.merge_and_unload()
    theirs, changed = dict(reference.named_parameters()), 0
    original = load_base(folder, recipe_of(), CPU, torch.float32).state_dict()
    for name, tensor in merged.named_parameters():
        assert torch.allclose(tensor, theirs[name].to(torch.bfloat16).float(), atol=0, rtol=2**-7), name
        changed += not torch.equal(tensor, original[name])
    assert changed
    # the checkpoint goes on bit for bit
    whole = (tmp_path / "out").glob("*.safetensors")
    shutil.copytree(tmp_path / "out/checkpoint-2", tmp_path / "half/checkpoint-2")
    train(recipe_of(**keys, output_dir=str(tmp_path / "half")))
    for file in whole:
        assert (tmp_path / "half" / file.name).read_bytes() == file.read_bytes()


def test_answers_are_transformers_generates(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    made = recipe_of(max_new_tokens=6, per_device_eval_batch_size=4)
    evaluate(made)
    lines = (tmp_path / "out/generated_predictions.jsonl").read_text().splitlines()
    data = load_training_data(made, Console(quiet=True))
    model = AutoModelForImageTextToText.from_pretrained(data.folder.path, dtype=torch.float32)
    for row, line in zip(load_rows("shapes", made).rows, lines, strict=True):
        text = data.processor.apply_chat_template(row.messages[:-1], tokenize=False, add_generation_prompt=True)
        inputs = data.processor(text=[text], images=[decode(p) for p in row.images] or None, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert json.loads(line)["predict"] == data.processor.tokenizer.decode(ids, skip_special_tokens=True), row.source


def test_a_model_of_another_kind_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = family_folder("qwen2_vl", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(FinetuneError, match=r"is a 'qwen2' model, .*supported are qwen3_vl, qwen2_5_vl, qwen2_vl"):
        train(recipe(model_name_or_path=str(folder)))


def test_merged_tensors_of_old_names_have_changed(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> None:
    folder = family_folder("qwen2_5_vl", tmp_path / "base")
    train(recipe(model_name_or_path=str(folder)))
    keys = {"adapter_name_or_path": str(tmp_path / "out"), "export_dir": str(tmp_path / "merged")}
    merged = load_file(merge(recipe(model_name_or_path=str(folder), **keys)) / "model.safetensors")
    original = load_file(folder / "model.safetensors")
    changed = {name for name in merged if not torch.equal(merged[name], original[name])}
    assert len(changed) > 10
    assert all(name.startswith("model.layers.") for name in changed)
