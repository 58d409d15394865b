from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.evaluation import evaluate as evaluate_module
from finetune.evaluation.evaluate import compare_runs, evaluate
from finetune.families import qwen_vl
from finetune.families.generation.rows import Rows
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]


def predictions(tmp_path: Path) -> list[dict[str, str]]:
    lines = (tmp_path / "out/generated_predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def reference_answers(recipe: Recipe) -> list[str]:
    """transformers' own generate, one row at a time."""
    from transformers import AutoModelForImageTextToText

    from finetune.data.datasets import load_rows
    from finetune.families.qwen_vl import load_processor
    from finetune.media.image_files import decode
    from finetune.media.pixel_limits import pixel_limits
    from finetune.model.folder import open_base

    folder = open_base(recipe)
    processor = load_processor(folder, pixel_limits(folder, recipe))
    model = AutoModelForImageTextToText.from_pretrained(folder.path, dtype=torch.float32)
    answers = []
    for row in load_rows("shapes", recipe).rows:
        text = processor.apply_chat_template(row.messages[:-1], tokenize=False, add_generation_prompt=True)
        images = [decode(path) for path in row.images] or None
        inputs = processor(text=[text], images=images, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=recipe.max_new_tokens)
        answers.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_answers_are_those_of_transformers_generate(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> None:
    """Prompts of many lengths in padded batches, with one, two and no images."""
    rows = [ask("what color is the shape?", "red", n) for n in range(4)]
    rows += [ask("describe the image.", "a shape", n, n + 1) for n in range(3)] + [ask("hello", "hi")]
    write_dataset(dataset, rows)
    made = recipe(max_new_tokens=12, per_device_eval_batch_size=3)
    result = evaluate(made)
    assert [record["predict"] for record in predictions(tmp_path)] == reference_answers(made)
    assert result.n == 8


def test_when_memory_runs_out_half_as_many_rows_are_answered_at_once(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's error is imitated; every row is answered once, and as before."""
    evaluate(recipe())
    expected, widths = predictions(tmp_path), []
    real = Rows.step

    def step(rows: Rows, width: int, seen: int) -> None:
        widths.append(rows.slots.count)
        if width > 2 and len(widths) > 10:
            raise torch.cuda.OutOfMemoryError
        real(rows, width, seen)

    monkeypatch.setattr(Rows, "step", step)
    evaluate(recipe(per_device_eval_batch_size=8, overwrite_output_dir=True))
    assert predictions(tmp_path) == expected
    assert list(dict.fromkeys(widths)) == [8, 4, 2]

    def never(rows: Rows, width: int, seen: int) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(Rows, "step", never)
    with pytest.raises(FinetuneError, match=r"shapes\.json, row \d+: the GPU's memory does not suffice to answer it"):
        evaluate(recipe(overwrite_output_dir=True))


def test_predictions_are_in_order_and_scored(recipe: MakeRecipe, tmp_path: Path) -> None:
    result = evaluate(recipe(per_device_eval_batch_size=5))
    found = predictions(tmp_path)
    assert [record["index"] for record in found] == list(range(24))
    assert found[0]["prompt"] == "<image>what color is the shape?"
    assert [record["label"] for record in found[:3]] == ["red", "yes", "a red rectangle"]
    right = [r["predict"].strip().casefold() == r["label"].strip().casefold() for r in found]
    assert result.exact_match == sum(right) / 24
    assert result.scores["exact_match"].mean == result.exact_match
    assert json.loads((tmp_path / "out/predict_results.json").read_text())["n"] == 24


def test_a_stopped_evaluation_goes_on(recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked, stops = qwen_vl.greedy, [], True

    def greedy(model, prompts, *rest):  # type: ignore[no-untyped-def]
        asked.append(len(prompts))
        for number, answer in enumerate(real(model, prompts, *rest)):
            if stops and number == 10:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(qwen_vl, "greedy", greedy)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe(per_device_eval_batch_size=5))
    stops = False
    partial = tmp_path / "out/.generated_predictions.jsonl.partial"
    with partial.open("a") as file:
        file.write('{"index": 3, "pre')  # killed while writing
    evaluate(recipe(per_device_eval_batch_size=5))
    assert asked == [24, 14]
    resumed = predictions(tmp_path)
    monkeypatch.undo()
    evaluate(recipe(per_device_eval_batch_size=5, overwrite_output_dir=True))
    assert resumed == predictions(tmp_path)


def test_answers_of_a_stopped_evaluation_are_on_the_disk_all_the_time_that_the_next_one_runs(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lines = qwen_vl.greedy, []

    def greedy(model, prompts, *rest):  # type: ignore[no-untyped-def]
        for number, answer in enumerate(real(model, prompts, *rest)):
            if number % 5 == 0:
                lines.append(len((tmp_path / "out/.generated_predictions.jsonl.partial").read_text().splitlines()))
                if len(lines) in (3, 4):
                    raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(qwen_vl, "greedy", greedy)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe(per_device_eval_batch_size=5))
    assert lines == [1, 6, 11, 11], "the line that says whose answers they are, and the answers"


def test_other_settings_do_not_reuse_answers(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module.Predictions, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe(max_new_tokens=8))
    evaluate(recipe(max_new_tokens=1))
    assert all(len(record["predict"].split()) <= 1 for record in predictions(tmp_path))


def test_finished_predictions_are_not_overwritten_unasked(recipe: MakeRecipe) -> None:
    evaluate(recipe())
    with pytest.raises(FinetuneError, match="exists; set overwrite_output_dir: true"):
        evaluate(recipe())


def test_a_prompt_over_the_limit_is_named(recipe: MakeRecipe) -> None:
    with pytest.raises(FinetuneError, match=r"shapes.json, row \d+: the prompt has \d+ tokens, over cutoff_len 20"):
        evaluate(recipe(cutoff_len=20))


def test_a_missing_adapter_is_named(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"has no adapter_config.json"):
        evaluate(recipe(adapter_name_or_path=str(tmp_path)))


def test_runs_are_compared_pair_by_pair(tmp_path: Path) -> None:
    labels = ["red", "blue"] * 20
    for name, right in (("first", 40), ("second", 20)):
        (tmp_path / name).mkdir()
        lines = [{"predict": label if n < right else "x", "label": label} for n, label in enumerate(labels)]
        (tmp_path / name / "generated_predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    compared = compare_runs(tmp_path / "first", tmp_path / "second", tmp_path / "page.html")
    head, scores = re.findall(r"<tr>.*?</tr>", (tmp_path / "page.html").read_text())[:2]
    assert re.findall("<th>(.*?)</th>", head) == ["metric", "first", "second", "difference", "95 % interval", "p"]
    assert re.findall("<td>(.*?)</td>", scores)[:4] == ["exact_match", "100.00", "50.00", "+50.00"]
    assert compared.difference["exact_match"].mean == 0.5
    assert compared.difference["exact_match"].low > 0.3
    assert compared.p["exact_match"] < 0.001
    same = compare_runs(tmp_path / "first", tmp_path / "first")
    assert same.difference["exact_match"].mean == 0
    assert same.p["exact_match"] == 1


def test_runs_over_other_questions_are_not_compared(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"predict": "x", "label": name}))
    with pytest.raises(FinetuneError, match="do not answer the same questions"):
        compare_runs(tmp_path / "red.jsonl", tmp_path / "blue.jsonl")
    (tmp_path / "odd.jsonl").write_text("{}")
    with pytest.raises(FinetuneError, match="does not hold predictions"):
        compare_runs(tmp_path / "odd.jsonl", tmp_path / "red.jsonl")
