from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from shapes_data import ask, write_dataset

from finetune.check import check
from finetune.cli import check as command
from finetune.errors import FinetuneError
from finetune.recipe import Recipe, save_recipe

MakeRecipe = Callable[..., Recipe]


def output(recipe: Recipe) -> tuple[bool, str]:
    console = Console(record=True, width=200, file=io.StringIO())
    return check(recipe, console), console.export_text()


def test_a_sound_recipe_would_start(recipe: MakeRecipe) -> None:
    sound, text = output(recipe(eval_dataset=None, val_size=0.25, max_steps=-1, num_train_epochs=2))
    assert sound
    assert "shapes.json: 24 rows" in text
    assert "8 images" in text
    assert "6 rows are held out" in text
    assert "18 rows, " in text
    assert "10 steps of up to 4 rows" in text
    assert "<|vision_start|>(4 image tokens)<|vision_end|>what color is the shape?<|im_end|>" in text
    assert "float32: there is no GPU" in text


def test_learnt_tokens_are_green(recipe: MakeRecipe) -> None:
    console = Console(record=True, width=200, file=io.StringIO(), force_terminal=True)
    check(recipe(), console)
    assert "\x1b[32mred<|im_end|>\x1b[0m" in console.export_text(styles=True)


def test_every_broken_row_is_named(recipe: MakeRecipe, dataset: Path) -> None:
    rows = [ask("fine?", "yes", 0), ask("gone?", "no", 9), ask("<image>more?", "no", 1), ask("<|im_end|>", "no", 2)]
    write_dataset(dataset, [*rows, ask("broken?", "no", 3)])
    (dataset / "images/3.png").write_text("no image")
    sound, text = output(recipe())
    assert not sound
    errors = [line for line in text.splitlines() if line.startswith("Error:")]
    assert [line.split(", row ")[1][0] for line in errors] == ["2", "3", "4", "5"]
    assert "1 rows" in text


def test_many_broken_rows_are_counted(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("gone?", "no", 9)] * 30)
    sound, text = output(recipe())
    assert not sound
    assert text.count("Error:") == 21
    assert "and 10 more broken rows" in text
    assert "No row can be trained on" in text


def test_long_rows_are_counted_not_fatal(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("shape " * (100 if n % 4 else 1), "red", 0) for n in range(8)])
    sound, text = output(recipe(cutoff_len=64))
    assert sound
    assert "6 rows are longer than cutoff_len 64 and would be left out" in text
    assert not output(recipe(cutoff_len=5))[0]


def test_images_are_not_decoded(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("what?", "red", n % 3) for n in range(9)])
    rows = [ask("what?", "red", n) for n in (0, 1)] + [
        {"conversations": [{"from": "human", "value": "<image>huge?"}, {"from": "gpt", "value": "yes"}],
         "images": ["images/cut.png"]}
    ]  # fmt: skip
    write_dataset(dataset, rows)
    Image.effect_noise((300, 300), 90).save(dataset / "images/cut.png")
    data = (dataset / "images/cut.png").read_bytes()
    (dataset / "images/cut.png").write_bytes(data[:2000])  # a header and no more
    assert output(recipe())[0]


def test_what_check_promises_train_keeps(recipe: MakeRecipe, dataset: Path) -> None:
    from finetune.train import train

    write_dataset(dataset, [ask("gone?", "no", 9)])
    assert not output(recipe())[0]
    with pytest.raises(FinetuneError, match=r"9\.png: the file does not exist"):
        train(recipe())


def test_the_exit_code_says_whether_training_would_start(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> None:
    save_recipe(recipe(), tmp_path / "recipe.yaml")
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")]).exit_code == 0
    write_dataset(dataset, [ask("gone?", "no", 9)])
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")]).exit_code == 1
