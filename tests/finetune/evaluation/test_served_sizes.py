"""`image_sizes`: answers with images in the sizes that another server gives them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.local_model import LocalModel
from finetune.recipe.schema import Recipe
from tests.support.modelfiles.model_folders import edit_json
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]


def prompt_lengths(recipe: Recipe) -> tuple[list[int], str]:
    model = LocalModel(recipe, load_rows(str(recipe.eval_dataset), recipe), Console(quiet=True))
    return [len(prompt) for prompt in model.prompts], model.identity


def test_images_take_the_tokens_that_ollama_gives_them(recipe: MakeRecipe) -> None:
    (own, identity), (served, other) = (
        prompt_lengths(recipe(eval_dataset="shapes", image_sizes=sizes)) for sizes in (None, "ollama")
    )
    # The images of the dataset are small: at most 64 tokens each in training, and 1024 at least in Ollama.
    assert all(length > 1024 for length in served)
    assert all(length < 128 for length in own)
    assert identity != other, "answers of the one are none of the other"


def test_limits_of_training_do_not_bind_the_server(recipe: MakeRecipe) -> None:
    lengths, _ = prompt_lengths(recipe(eval_dataset="shapes", image_sizes="ollama", image_max_pixels=4096))
    assert all(length > 1024 for length in lengths)


def test_sizes_that_are_not_known_are_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(SHAPES_VL, base)
    edit_json(base / "config.json", architectures=["UnknownForConditionalGeneration"])
    with pytest.raises(FinetuneError, match="UnknownForConditionalGeneration is not known"):
        prompt_lengths(recipe(model_name_or_path=str(base), eval_dataset="shapes", image_sizes="ollama"))


def test_an_endpoint_sizes_images_itself(recipe: MakeRecipe) -> None:
    with pytest.raises(FinetuneError, match="an endpoint sizes images itself"):
        evaluate(recipe(eval_dataset="shapes", image_sizes="ollama"), endpoint="http://127.0.0.1:9/v1")
