from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from finetune.cli import evaluate, export, train
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from lensmith import main


def test_the_line_from_recipe_to_model_folder(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe(), path)
    runner = CliRunner()
    trained = runner.invoke(train, [str(path), "max_steps=2"])
    assert trained.exit_code == 0, trained.output
    assert "2 steps in" in trained.output
    adapter = f"adapter_name_or_path={tmp_path / 'out'}"
    scored = runner.invoke(evaluate, [str(path), adapter, f"output_dir={tmp_path / 'scores'}"])
    assert scored.exit_code == 0, scored.output
    assert "24 answers, " in scored.output
    assert "Evaluation of scores" in (tmp_path / "scores/report.html").read_text()
    assert "rouge-l" in scored.output
    again = [str(path), f"output_dir={tmp_path / 'base'}", "--against", str(tmp_path / "scores")]
    compared = runner.invoke(evaluate, again)
    assert compared.exit_code == 0, compared.output
    page = (tmp_path / "base/comparison.html").read_text()
    assert str(tmp_path / "base/comparison.html") in compared.output
    assert page.count('<img alt="0.png" src="data:image/png;base64,') == 3
    assert "what color is the shape?" in page
    assert "p = " in compared.output
    merged = runner.invoke(export, [str(path), adapter, f"export_dir={tmp_path / 'merged'}"])
    assert merged.exit_code == 0, merged.output
    assert "28 weights changed, ||dW|| =" in merged.output
    assert (tmp_path / "merged/lensmith.json").exists()


def test_a_run_says_how_it_went_and_its_next_commands_work_as_typed(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    path, output = tmp_path / "recipe.yaml", tmp_path / "my run's"
    save_recipe(recipe(output_dir=str(output), eval_strategy="steps", eval_steps=1), path)
    trained = CliRunner().invoke(train, [str(path), "max_steps=2"])
    assert re.search(r"loss \d+\.\d+, validation loss \d+\.\d+ \(lowest after step \d\)", trained.output)
    assert f"Curve and answers: {output}/report.html" in trained.output
    (commands,) = re.findall(r"<pre>([\s\S]*?)</pre>", (output / "report.html").read_text())
    scored, exported, served = (shlex.split(line) for line in html.unescape(commands).splitlines())
    assert shlex.split(trained.output.splitlines()[-1].removeprefix("Next: ")) == scored
    for line in (scored, exported):
        result = CliRunner().invoke(main, line[1:])
        assert result.exit_code == 0, result.output
    assert served[:2] == ["lensmith", "serve"]
    assert (Path(served[2]) / "lensmith.json").exists()


def test_the_run_to_compare_with_is_read_before_anything_is_answered(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    save_recipe(recipe(), path)
    result = CliRunner().invoke(evaluate, [str(path), "--against", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "nothing" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [train, evaluate, export])
def test_an_error_is_one_line_and_a_failure(command: object, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model_name_or_path: /nowhere\n")
    keys = ["dataset=a", "eval_dataset=a", "output_dir=o", "adapter_name_or_path=a", "export_dir=e"]
    result = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), *keys])  # type: ignore[arg-type]
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if "Error" in line)  # what is read first: model or rows
    assert re.match(r"Error: (model_name_or_path: /nowhere|data/dataset_info.json) does not exist", line)


@pytest.mark.parametrize(
    ("words", "wanted"), [(([], "tr"), "train"), ((["check"], "--dec"), "--decode"), ((["export"], "rec"), "rec")]
)
def test_a_shell_completes_commands_options_and_files(words: tuple[list[str], str], wanted: str) -> None:
    found = BashComplete(main, {}, "lensmith", "_LENSMITH_COMPLETE").get_completions(*words)
    assert [item.value for item in found] == [wanted]
    assert found[0].type == ("file" if wanted == "rec" else "plain")
