"""Models and datasets by their ids, through the hubs' real clients against a stand-in server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.hub_server import HubServer
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    model = shutil.copytree(SHAPES_VL, tmp_path / "hub/model")
    (model / "pytorch_model.bin").write_bytes(b"runs code when read")
    data = write_dataset(tmp_path / "hub/data", [ask("what?", "red", n) for n in range(4)])
    (data / "dataset_info.json").unlink()
    (data / "shapes.json").rename(data / "train.json")
    (data / "test.json").write_text(json.dumps([ask("gone?", "no", 9)]))
    server = HubServer({"models/us/shapes-vl": model, "datasets/us/shapes": data})
    yield server
    server.close()


def run(tmp_path: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hubs' clients read their environment when imported."""
    places = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env={**os.environ, **places, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


SCRIPT = """
import sys
from finetune.data.hub import download
from finetune.errors import FinetuneError
try:
    print(download(*sys.argv[1:]))
except FinetuneError as error:
    print(error.message)
"""


def test_a_recipe_of_ids_is_downloaded_and_checked(recipe: MakeRecipe, tmp_path: Path, hub: HubServer) -> None:
    save_recipe(recipe(model_name_or_path="us/shapes-vl", dataset="us/shapes"), tmp_path / "recipe.yaml")
    done = run(tmp_path, ["-m", "lensmith", "check", str(tmp_path / "recipe.yaml")], {"HF_ENDPOINT": hub.url})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train.json: 4 rows" in done.stdout
    assert not any("pytorch_model.bin" in path for path in hub.asked if "/resolve/" in path)


def test_what_is_downloaded_needs_no_network(tmp_path: Path, hub: HubServer) -> None:
    place = {"HF_ENDPOINT": hub.url}
    folder = run(tmp_path, ["-c", SCRIPT, "us/shapes", "dataset"], place).stdout
    assert (Path(folder.strip()) / "train.json").is_file()
    asked = len(hub.asked)
    offline = place | {"HF_HUB_OFFLINE": "1"}
    assert run(tmp_path, ["-c", SCRIPT, "us/shapes", "dataset"], offline).stdout == folder
    gone = run(tmp_path, ["-c", SCRIPT, "us/other", "model"], offline).stdout
    assert "us/other is no local folder, and as a model of the Hugging Face hub it is not in the cache and" in gone
    assert "HF_HUB_OFFLINE is set" in gone
    assert len(hub.asked) == asked
    typo = run(tmp_path, ["-c", SCRIPT, "us/typo", "model"], place).stdout
    assert f"us/typo is no local folder, and as a model of the Hugging Face hub {hub.url} has no such model" in typo


def test_modelscope_ids_with_its_variable(tmp_path: Path, hub: HubServer) -> None:
    places = {"MODELSCOPE_ENDPOINT": hub.url, "USE_MODELSCOPE_HUB": "1"}
    for name, kind, file in (("shapes-vl", "model", "model.safetensors"), ("shapes", "dataset", "train.json")):
        done = run(tmp_path, ["-c", SCRIPT, f"us/{name}", kind], places)
        folder = Path(done.stdout.strip().splitlines()[-1])
        assert (folder / file).is_file(), done.stdout + done.stderr
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert not any("resolve" in path for path in hub.asked)
    done = run(tmp_path, ["-c", SCRIPT, "us/typo", "model"], places)
    assert "us/typo is no local folder, and cannot be had from ModelScope" in done.stdout
