"""`lensmith init DATA`: a recipe that starts as it is, with a reason on every line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from finetune.cli import check, env, init
from finetune.data.datasets import load_rows
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(init, [*map(str, arguments), "--model", str(SHAPES_VL)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def rows(dataset: Path) -> list[Any]:
    (dataset / "dataset_info.json").unlink()
    return [ask("what?", "red", n % 8) for n in range(30)]


def as_openai(row: Any) -> Any:
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return {"messages": turns, "images": row["images"]}


def as_pair(row: Any) -> Any:
    question, answer = row["conversations"]
    return {"image": row["images"][0], "question": question["value"], "answer": answer["value"]}


@pytest.mark.parametrize(
    ("shape", "entry"),
    [
        (lambda row: row, {"formatting": "sharegpt"}),
        (as_openai, {"formatting": "openai"}),
        (as_pair, {"formatting": "alpaca", "columns": {"prompt": "question", "response": "answer"}}),
    ],
)
def test_the_recipe_reads_the_data_and_would_start(
    dataset: Path, rows: list[Any], tmp_path: Path, shape: Callable[[Any], Any], entry: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (dataset / "my data.json").write_text(json.dumps([shape(row) for row in rows]))
    out = tmp_path / "new/recipe.yaml"
    code, text = run(dataset / "my data.json", "--out", out)
    assert code == 0, text
    assert f"Next: lensmith check {out}" in text
    info = json.loads((dataset / "dataset_info.json").read_text())
    assert info == {"my_data": {"file_name": "my data.json"} | entry}
    recipe = load_recipe(out)
    assert recipe.dataset == "my_data"
    named = load_rows("my_data", recipe)
    assert named.rows == load_rows(str(dataset / "my data.json"), recipe).rows
    result = CliRunner().invoke(check, [str(out)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "Would start."


def test_every_line_says_why(dataset: Path, rows: list[Any], tmp_path: Path) -> None:
    (dataset / "few.json").write_text(json.dumps(rows[:5]))
    Image.new("RGB", (2000, 1500)).save(dataset / "images/0.png")
    assert run(dataset / "few.json", "--out", tmp_path / "r.yaml")[0] == 0
    lines = (tmp_path / "r.yaml").read_text().splitlines()[2:]
    assert all(re.fullmatch(r"(# )?\w+: .*  # .+", line) for line in lines)
    values = yaml.safe_load("\n".join(lines))
    assert values["image_max_pixels"] == 589824
    assert 576 < values["cutoff_len"] < 1100
    assert "val_size" not in values
    assert "quantization_bit" not in values


def test_a_folder_of_captions(dataset: Path, rows: list[Any], tmp_path: Path) -> None:
    folder = dataset / "photos/train"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes((dataset / "images/0.png").read_bytes())
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a shape"}))
    assert run(dataset / "photos", "--out", tmp_path / "r.yaml")[0] == 0
    (row,) = load_rows("photos", load_recipe(tmp_path / "r.yaml")).rows
    assert row.images == [folder / "0.png"]


def test_nothing_that_exists_is_lost(dataset: Path, rows: list[Any], tmp_path: Path) -> None:
    (dataset / "a.json").write_text(json.dumps(rows))
    write_dataset(dataset, rows, name="other")
    (tmp_path / "r.yaml").write_text("mine: true")
    code, text = run(dataset / "a.json", "--out", tmp_path / "r.yaml")
    assert (code, "r.yaml exists; give another name with --out" in text) == (1, True)
    assert (tmp_path / "r.yaml").read_text() == "mine: true"
    assert run(dataset / "a.json", "--out", tmp_path / "s.yaml")[0] == 0
    assert list(json.loads((dataset / "dataset_info.json").read_text())) == ["other", "a"]
    (dataset / "dataset_info.json").write_text('{"a": {"file_name": "b.json"}}')
    assert "has another entry 'a'" in run(dataset / "a.json", "--out", tmp_path / "t.yaml")[1]
    assert not (tmp_path / "t.yaml").exists()


def test_data_that_cannot_be_read_is_named(dataset: Path, rows: list[Any], tmp_path: Path) -> None:
    (dataset / "odd.json").write_text('[{"frage": "a?", "antwort": "b"}]')
    code, text = run(dataset / "odd.json", "--out", tmp_path / "r.yaml")
    assert code == 1
    assert '"columns": {"prompt": "frage", "response": "antwort"}' in text
    (dataset / "part.json").write_text(json.dumps([rows[0], {"conversations": []}]))
    assert "1 row cannot be read" in run(dataset / "part.json", "--out", tmp_path / "r.yaml")[1]
    assert "does not exist" in run(dataset / "gone.json", "--out", tmp_path / "s.yaml")[1]


def test_the_environment_is_described_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    output = CliRunner().invoke(env, []).output
    assert re.search(r"^torch +\d", output, re.MULTILINE)
    assert re.search(r"^lmdeploy +(missing|\d)", output, re.MULTILINE)
    assert re.search(r"^HF_HUB_OFFLINE +1$", output, re.MULTILINE)
    assert "hf_secret" not in output
