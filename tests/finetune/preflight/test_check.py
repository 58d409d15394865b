from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from finetune.cli import check as command
from finetune.errors import FinetuneError
from finetune.memory.cards import find_card
from finetune.preflight.check import check_recipe
from finetune.preflight.preview import histogram, round_edges
from finetune.preflight.report import Report
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]


def output(recipe: Recipe, gpu: str | None = None, **options: Any) -> tuple[bool, str]:
    console = Console(record=True, width=400, file=io.StringIO())
    return check_recipe(recipe, Report(console), find_card(gpu) if gpu else None, **options), console.export_text()


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


def test_the_verdict_comes_last_and_names_what_to_mend_first(recipe: MakeRecipe, dataset: Path) -> None:
    assert output(recipe())[1].splitlines()[-1] == "Would start."
    write_dataset(dataset, [ask("gone?", "no", 9), ask("fine?", "yes", 0)])
    sound, text = output(recipe(bf16=True), "t4")
    assert not sound
    verdict = text.splitlines()[-1]
    assert verdict.startswith("Would not start. Mend first: shapes.json, row 1: the image ")
    assert verdict.endswith("(1 more above.)")


def test_without_the_model_rows_images_and_lengths_are_told_all_the_same(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("what? " * 80, "red", 3), ask("gone?", "no", 9), ask("what?", "red", 0)])
    sound, text = output(recipe(model_name_or_path="nowhere", cutoff_len=64))
    assert not sound
    assert "nowhere" in text.splitlines()[0]
    assert "shapes.json, row 2: the image " in text
    assert "2 images, 64x64 to 200x180 pixels" in text
    assert "about 1 of 2 rows are longer than cutoff_len 64" in text
    assert "Mend first: model_name_or_path: nowhere" in text.splitlines()[-1]


def test_without_the_data_the_model_and_the_recipe_are_checked(recipe: MakeRecipe, tmp_path: Path) -> None:
    lost = recipe(dataset_dir=str(tmp_path / "lost"), cutoff_len=2048, image_max_pixels=589824)
    sound, text = output(lost, "t4")
    assert not sound
    assert "lost/dataset_info.json does not exist" in text
    assert "An image of image_max_pixels 589,824 has 576 tokens in Qwen3-VL; cutoff_len 2048 holds 3 of them" in text
    assert "Compute dtype float16" in text
    assert "Ollama loads the merged model" in text


def test_a_published_recipe_gets_its_warnings_without_model_and_data(tmp_path: Path) -> None:
    published = Path(__file__).parents[1] / "recipe/published/train_openeqa.yaml"
    result = CliRunner().invoke(command, [str(published), f"dataset_dir={tmp_path}"])
    assert result.exit_code == 1
    assert "quantization_method: bitsandbytes is read as bnb" in result.output
    assert "cutoff_len 2048 holds 3 of them" in result.output


def test_the_parts_of_the_memory_add_up(recipe: MakeRecipe) -> None:
    text = output(recipe(), "t4")[1]
    found = re.search(r"about (\S+) of 14.6 GiB \((.*)\)", text)
    assert found
    assert sum(float(part.rpartition(" ")[2]) for part in found[2].split(", ")) == pytest.approx(float(found[1]))


@pytest.mark.parametrize(
    ("lengths", "bars"),
    [
        ([12, 15, 33], ["10 to 14", "15 to 19", "20 to 24", "25 to 29", "30 to 34"]),
        ([7], ["7 to 7"]),
        ([300, 1350], ["200 to 399", "400 to 599", "600 to 799", "800 to 999", "1,000 to 1,199", "1,200 to 1,399"]),
        ([40, 50, 1000], ["32 to 63", "64 to 127", "128 to 255", "256 to 511", "512 to 1,023"]),
    ],
)
def test_lengths_are_in_bars_of_round_numbers(lengths: list[int], bars: list[str]) -> None:
    table = histogram(lengths, 1024)
    assert list(table.columns[0].cells) == bars
    assert sum(int(str(count).replace(",", "")) for count in table.columns[1].cells) == len(lengths)


@given(st.integers(1, 2_000_000), st.integers(0, 2_000_000))
def test_every_row_is_in_one_of_at_most_ten_bars(least: int, more: int) -> None:
    edges = round_edges(least, least + more)
    assert 2 <= len(edges) <= 11
    assert all(low < high for low, high in pairwise(edges))
    assert edges[0] <= least <= least + more < edges[-1]


def test_label_tokens_are_green(recipe: MakeRecipe) -> None:
    console = Console(record=True, width=200, file=io.StringIO(), force_terminal=True)
    check_recipe(recipe(), Report(console))
    assert "\x1b[32mred<|im_end|>\x1b[0m" in console.export_text(styles=True)


def test_every_broken_row_is_named(recipe: MakeRecipe, dataset: Path) -> None:
    rows = [ask("fine?", "yes", 0), ask("gone?", "no", 9), ask("<image>more?", "no", 1), ask("<|im_end|>", "no", 2)]
    write_dataset(dataset, [*rows, ask("broken?", "no", 3)])
    (dataset / "images/3.png").write_text("no image")
    sound, text = output(recipe())
    assert not sound
    errors = [line for line in text.splitlines() if line.startswith("Error:")]
    assert [line.split(", row ")[1][0] for line in errors] == ["2", "3", "4", "5"]
    assert "1 row\n" in text


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
    assert "6 of 8 rows are longer than cutoff_len 64 (the longest has" in text
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
    from finetune.training.loop import train

    write_dataset(dataset, [ask("gone?", "no", 9)])
    assert not output(recipe())[0]
    with pytest.raises(FinetuneError, match=r"9\.png: the file does not exist"):
        train(recipe())


def test_the_exit_code_says_whether_training_would_start(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> None:
    save_recipe(recipe(), tmp_path / "recipe.yaml")
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")]).exit_code == 0
    write_dataset(dataset, [ask("gone?", "no", 9)])
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")]).exit_code == 1


def test_the_dtype_is_the_cards(recipe: MakeRecipe) -> None:
    assert "float16 with loss scaling: NVIDIA T4, compute capability 7.5" in output(recipe(), "t4")[1]
    assert "bfloat16: NVIDIA L4, compute capability 8.9" in output(recipe(), "L4")[1]
    sound, text = output(recipe(bf16=True), "t4")
    assert not sound
    assert "bf16 is set but NVIDIA T4" in text


def test_memory_is_estimated_and_a_change_that_fits_is_named(recipe: MakeRecipe, dataset: Path) -> None:
    sound, text = output(recipe(), "t4")
    assert sound
    assert "of 14.6 GiB (weights in 16 bits" in text
    Image.effect_noise((2000, 2000), 90).save(dataset / "images/large.png")
    turns = [{"from": "human", "value": "<image>" * 9 + "which?"}, {"from": "gpt", "value": "none"}]
    write_dataset(dataset, [{"conversations": turns, "images": ["images/large.png"] * 9}] * 64)
    large = recipe(per_device_train_batch_size=64, disable_gradient_checkpointing=True)
    sound, text = output(large, "1.1")
    assert not sound
    advice = re.search(r"with (.*) it would", text)
    assert advice
    changes = dict(change.split("=") for change in advice[1].split())
    assert changes["disable_gradient_checkpointing"] == "false"
    assert output(large.model_copy(update={key: yaml.safe_load(v) for key, v in changes.items()}), "1.1")[0]


def test_servers_that_load_the_result_are_named(recipe: MakeRecipe, tmp_path: Path) -> None:
    text = output(recipe())[1]
    assert "LMDeploy 0.18 loads the merged model: PyTorch engine; TurboMind has it not" in text
    assert "Ollama loads the merged model: 0.12.7 or later, from the folder" in text
    base = shutil.copytree(SHAPES_VL, tmp_path / "model")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {
        "rope_theta": config["text_config"].pop("rope_theta"), **config["text_config"].pop("rope_scaling")
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    assert "Ollama does not load the merged model: MF205" in output(recipe(model_name_or_path=str(base)))[1]


def test_time_and_cost_come_from_steps_of_the_real_loop(recipe: MakeRecipe, tmp_path: Path) -> None:
    sound, text = output(recipe(max_steps=-1, num_train_epochs=1e6), measured=True, price=2.5)
    assert sound
    found = re.search(r"Measured (\S+) samples/s: about (\S+) hours without validation, (\S+) at 2.5 an hour", text)
    assert found
    speed, hours, cost = map(float, found.groups())
    assert hours == pytest.approx(24e6 / speed / 3600, rel=0.1)
    assert cost == pytest.approx(2.5 * hours, rel=0.1)
    assert not (tmp_path / "out").exists()


def test_empty_answers_are_warned_of(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("what?", "red", 0), ask("and this?", " ", 1)])
    sound, text = output(recipe())
    assert sound
    assert "1 row has an empty answer, which teaches to say nothing: shapes.json, row 2" in text
    assert "shapes.json, row 1" in text


def test_an_unknown_card_gets_a_suggestion(recipe: MakeRecipe, tmp_path: Path) -> None:
    save_recipe(recipe(), tmp_path / "recipe.yaml")
    result = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--gpu", "h1000"])
    assert result.exit_code == 1
    assert "'h1000' is no card known here; did you mean h100?" in result.output
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--gpu", "24"]).exit_code == 0


def test_rows_that_are_written_alike_wrongly_are_one_problem_with_a_count(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(
        dataset, [ask("fine?", "yes", 0), *[{"conversations": [{"from": "robot"}], "id": n} for n in range(9)]]
    )
    sound, text = output(recipe())
    assert not sound
    assert text.count("Error:") == 1
    assert "shapes.json, row 2, turn 1: 'from' is 'robot'; use human" in text
    assert "(8 more rows like it.)" in text
    assert "shapes.json: not used: id" in text


def test_programs_read_what_check_found(recipe: MakeRecipe, tmp_path: Path) -> None:
    save_recipe(recipe(eval_dataset=None, val_size=0.25, max_steps=-1, num_train_epochs=2), tmp_path / "recipe.yaml")
    file = tmp_path / "found.json"
    arguments = [str(tmp_path / "recipe.yaml"), "--gpu", "t4", "--measure", "--price", "2", "--json", str(file)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert found["starts"] is True
    assert found["problems"] == []
    assert found["data"]["rows"] == 24
    assert found["data"]["kept"] == 18
    assert found["data"]["steps"] == 10
    assert found["memory"]["card"] == "NVIDIA T4"
    assert found["memory"]["fits"] is True
    assert sum(found["memory"]["parts_gib"].values()) == pytest.approx(found["memory"]["needed_gib"], abs=0.05)
    assert found["time"]["cost"] == pytest.approx(2 * found["time"]["hours"])
    assert {"name": "lensmith serve", "loads": True}.items() <= found["servers"][0].items()
    assert {"kind": "fact", "text": "8 images, 64x64 to 200x180 pixels"} in found["findings"]


def test_programs_read_what_keeps_training_from_starting(recipe: MakeRecipe, tmp_path: Path) -> None:
    save_recipe(recipe(dataset_dir=str(tmp_path / "lost")), tmp_path / "recipe.yaml")
    file = tmp_path / "found.json"
    assert CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--json", str(file)]).exit_code == 1
    found = json.loads(file.read_text())
    assert found["starts"] is False
    assert "lost/dataset_info.json does not exist" in found["problems"][0]
    assert {"kind": "error", "text": found["problems"][0]} in found["findings"]


def test_a_file_that_check_cannot_write_is_said(recipe: MakeRecipe, tmp_path: Path) -> None:
    save_recipe(recipe(), tmp_path / "recipe.yaml")
    file = tmp_path / "no-such-folder" / "found.json"
    result = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--json", str(file)])
    assert result.exit_code == 1
    assert f"--json: {file} cannot be written" in result.output
