"""A base that is not whole is refused from the headers of its files, by `check`, `train` and `eval` alike."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training import trainer
from finetune.training.loop import train
from tests.support.finetune.families import FAMILIES, family_folder
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]
NORM = "model.language_model.layers.0.input_layernorm.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def changed_base(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(SHAPES_VL, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def assert_refused(recipe: Recipe, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By everything that would use it, before weights are loaded."""
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("the weights were loaded"))
    console = Console(file=io.StringIO(), width=400)

    def check(recipe: Recipe) -> None:
        if not check_recipe(recipe, Report(console)):
            raise FinetuneError(console.file.getvalue())

    for work in (train, evaluate, check):
        with pytest.raises(FinetuneError, match=complaint):
            work(recipe)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(NORM), f"lacks 1 of its weights, such as {NORM}; fetch the model again"),
        (lambda t: t.update({NORM + "s": t.pop(NORM)}), f"lacks 1 of its weights, such as {NORM}"),
        (lambda t: t.update({"model.mtp.weight": torch.ones(2)}), "has 1 weights that transformers would pass over"),
        (lambda t: t.update({NORM: torch.ones(3)}), rf"{NORM} is \[3\] instead of \[\d+\]"),
        (lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)}), f"{NORM} is F8_E4M3; use the model that was not"),
    ],
)
def test_weights_that_are_missing_unknown_or_other_are_refused(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, complaint: str
) -> None:
    base = changed_base(tmp_path / "base", change)
    assert_refused(recipe(model_name_or_path=str(base)), complaint, monkeypatch)


@pytest.mark.parametrize(("method", "nested"), [("awq", False), ("gptq", True), ("fp8", False), ("bitsandbytes", True)])
def test_a_quantised_base_is_refused(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, nested: bool
) -> None:
    base = changed_base(tmp_path / "base", lambda tensors: None)
    config = json.loads((base / "config.json").read_text())
    (config["text_config"] if nested else config)["quantization_config"] = {"quant_method": method, "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    assert_refused(recipe(model_name_or_path=str(base)), rf"is already quantised \({method}\)", monkeypatch)


def test_a_tokenizer_beyond_the_embedding_is_refused(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed_base(tmp_path / "base", lambda tensors: None)
    rows = len(load_file(base / "model.safetensors")[EMBEDDING])
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": rows, "content": "<defect>"})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    complaint = f"'<defect>' is token {rows}, but its embedding has {rows} rows"
    assert_refused(recipe(model_name_or_path=str(base)), complaint, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_bases_with_names_of_any_time_pass(recipe: MakeRecipe, tmp_path: Path, family: str) -> None:
    """Also with a copy of the tied output, and with the frequencies that older checkpoints hold."""
    base = family_folder(family, tmp_path / "base")
    if base == SHAPES_VL:
        base = changed_base(tmp_path / "base", lambda tensors: None)
    tensors = load_file(base / "model.safetensors")
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[embedding].clone()
    tensors["visual.rotary_pos_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert check_recipe(recipe(model_name_or_path=str(base)), Report(Console(quiet=True)))
