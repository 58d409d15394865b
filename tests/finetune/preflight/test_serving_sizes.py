"""`serve_with`: image sizes of training that a server does not keep are named with the keys to change."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.families.registry import family_of
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.preflight.serving_sizes import size_warnings
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder
from tests.support.modelfiles.model_folders import edit_json, write_json
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]
MIB = 1024 * 1024  # pixels of 1024 tokens


@pytest.fixture
def base(tmp_path: Path) -> ModelFolder:
    """The example model with the limits of the published Qwen3-VL."""
    shutil.copytree(SHAPES_VL, tmp_path / "base")
    size = {"shortest_edge": 65536, "longest_edge": 16 * MIB}
    edit_json(tmp_path / "base" / "preprocessor_config.json", size=size)
    return ModelFolder.open(tmp_path / "base")


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({}, ["Set image_min_pixels: 1048576.", "Set image_max_pixels: 4194304."]),
        ({"image_min_pixels": MIB, "image_max_pixels": 4 * MIB}, []),
        ({"image_min_pixels": MIB}, ["Set image_max_pixels: 4194304."]),
        ({"image_max_pixels": 589824}, ["Set image_min_pixels: 1048576 and unset image_max_pixels."]),
    ],
)
def test_the_keys_to_change_are_named(keys: dict[str, int], advice: list[str], base: ModelFolder) -> None:
    recipe = Recipe(model_name_or_path=str(base.path), serve_with="lmdeploy,ollama", **keys)
    warnings = list(size_warnings(recipe, base))
    assert len(warnings) == len(advice)
    assert all(warning.endswith(end) for warning, end in zip(warnings, advice, strict=True))


@pytest.mark.parametrize("servers", [None, "lensmith", "lmdeploy", "lensmith,lmdeploy"])
def test_servers_that_keep_the_sizes_ask_for_nothing(servers: str | None, base: ModelFolder) -> None:
    assert list(size_warnings(Recipe(model_name_or_path=str(base.path), serve_with=servers), base)) == []


def test_check_warns_of_a_base_that_ends_below_what_ollama_makes(recipe: MakeRecipe) -> None:
    console = Console(record=True, width=400, file=io.StringIO())
    assert check_recipe(recipe(serve_with="ollama"), Report(console)), "training would start all the same"
    text = console.export_text()
    assert "Warning: serve_with: Ollama makes every image 1024 to 4096 tokens; training ends at 64" in text
    assert "preprocessor_config.json, which ends at 65536 pixels" in text


def test_servers_are_a_list_of_known_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: m\nserve_with: [lmdeploy, ollama]\n")
    assert load_recipe(str(path)).serve_with == "lmdeploy,ollama"
    path.write_text("model_name_or_path: m\nserve_with: vllm\n")
    with pytest.raises(FinetuneError, match="'vllm' is none of lensmith, lmdeploy and ollama"):
        load_recipe(str(path))


def test_a_base_whose_two_processor_files_differ(recipe: MakeRecipe, base: ModelFolder) -> None:
    """Other limits are settled by the export; pixels that would be scaled otherwise are refused."""
    images = json.loads((base.path / "preprocessor_config.json").read_text())
    size = {"shortest_edge": 65536, "longest_edge": MIB}
    made = recipe(model_name_or_path=str(base.path))
    write_json(base.path / "processor_config.json", {"image_processor": images | {"size": size}})
    (warning,) = size_warnings(made, base)
    assert "16,777,216 pixels in preprocessor_config.json, 65,536 to 1,048,576 pixels in processor_config" in warning
    assert family_of(base).read(base, made).bank.limits.max_pixels == 16 * MIB
    write_json(base.path / "processor_config.json", {"image_processor": images | {"image_std": [0.25, 0.25, 0.25]}})
    with pytest.raises(FinetuneError, match=r"image_std is \[0.5, 0.5, 0.5\] in preprocessor_config.json and \[0.25"):
        family_of(base).read(base, made)
