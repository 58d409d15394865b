"""The page Train: a form that is a recipe, its verdict, and a start that happens once."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from studio.jobs.job import Job
from studio.jobs.spec import CPU
from studio.training import checks
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.paths import ROOT, SHAPES_VL
from tests.support.studio.datasets import imported, picture

Preview = Callable[..., dict[str, Any]]


@pytest.fixture
def form(shapes: str) -> dict[str, str]:
    return {"data": shapes, "model": str(SHAPES_VL), "goal": "quick", "name": "first"}


@pytest.fixture
def preview(client: TestClient, form: dict[str, str]) -> Preview:
    """What the form stands for, with some fields changed."""

    def ask(**changes: str) -> dict[str, Any]:
        answer = client.post("/train/preview", data=form | changes)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return ask


def ended(studio: Studio, job: Job) -> Job:
    until("the job is over", lambda: not studio.jobs.get(job.id).active)
    return studio.jobs.get(job.id)


def test_without_data_the_page_says_where_to_bring_it(client: TestClient) -> None:
    page = client.get("/train").text
    assert "There is no data yet." in page
    assert 'href="data"' in page


def test_data_without_rows_is_not_replaced_by_other_data(client: TestClient, shapes: str) -> None:
    page = html.unescape(imported(client, {"a.png": picture()}, "no-answers"))
    assert "No row can be trained on yet." in page
    assert "Train on it" not in page
    page = client.get("/train", params={"data": "no-answers@1"}).text
    assert "“no-answers@1” has no row to train on" in page
    assert f'<option value="{shapes}" selected>' not in page
    assert '<option value="" selected>' in page


def test_the_form_offers_the_data_and_the_models_of_this_machine(client: TestClient, shapes: str) -> None:
    page = client.get("/train").text
    assert f'<option value="{shapes}" selected>shapes · version 1</option>' in page
    assert f'<option value="{SHAPES_VL}"' in page
    assert "5.49 M weights" in page


def test_a_second_run_does_not_go_on_from_the_first_ones_export(
    client: TestClient, studio: Studio, shapes: str
) -> None:
    exported = shutil.copytree(SHAPES_VL, studio.workspace.path("models", "first"))
    (exported / "lensmith.json").write_text("{}")
    page = client.get("/train").text
    assert f'<option value="{SHAPES_VL}" selected>' in page
    assert '<option value="models/first">' in page


def test_every_key_of_the_recipe_has_a_field_with_its_help_in_both_languages(client: TestClient, shapes: str) -> None:
    from finetune.recipe.schema import Recipe
    from studio.training.schema_form import OWN, schema_groups

    fields = {field.key: field for fields in schema_groups().values() for field in fields}
    idle = {key for key, field in Recipe.model_fields.items() if str(field.description).startswith("No effect")}
    fixed = {"quantization_method", "quantization_type", "export_legacy_format"}  # one value each
    assert fields.keys() == Recipe.model_fields.keys() - OWN - idle - fixed
    for field in fields.values():
        assert field.help_in("zh") not in ("", field.help)
        assert field.help_in("en") == Recipe.model_fields[field.key].description
    assert "适配器的秩" in client.get("/train", headers={"accept-language": "zh"}).text


def test_the_form_is_the_recipe_and_the_command_that_do_the_same(preview: Preview, studio: Studio) -> None:
    found = preview(**{"key.lora_rank": "4", "key.learning_rate": "1e-3"})
    assert found["problems"] == {}
    recipe = yaml.safe_load(found["yaml"])
    assert recipe["dataset_dir"] == "datasets/shapes/versions/1"
    assert recipe["dataset"] == "train"
    assert recipe["eval_dataset"] == "validation"
    assert recipe["lora_rank"] == 4
    assert recipe["max_steps"] == 150
    assert found["command"] == f"cd {studio.workspace.folder} && lensmith train runs/first/recipe.yaml"


def test_auto_takes_its_rows_from_those_of_a_step(preview: Preview) -> None:
    suggested = yaml.safe_load(preview()["yaml"])
    rows = suggested["per_device_train_batch_size"] * suggested["gradient_accumulation_steps"]
    auto = {"key.per_device_train_batch_size": "auto"}
    assert yaml.safe_load(preview(**auto)["yaml"])["gradient_accumulation_steps"] == rows
    chosen = preview(**auto, **{"key.gradient_accumulation_steps": "12"})
    assert yaml.safe_load(chosen["yaml"])["gradient_accumulation_steps"] == 12
    wrong = preview(**{"key.per_device_train_batch_size": "many"})["problems"]
    assert wrong["key.per_device_train_batch_size"] == "'many' is neither a number of rows, 1 or more, nor auto."


def test_a_key_that_is_a_number_or_a_word_can_be_either(client: TestClient, preview: Preview) -> None:
    key = "per_device_train_batch_size"
    field = re.search(rf'<input id="key.{key}"[^>]*>\s*<datalist.*?</datalist>', client.get("/train").text)
    assert field is not None
    assert '<option value="auto">' in field[0]
    for value in ("auto", "4"):
        found = preview(**{f"key.{key}": value, "key.gradient_accumulation_steps": "16"})
        assert f"{key}: {value}" in found["yaml"]
        assert not found["problems"]


def test_goals_differ_in_how_much_is_learnt(preview: Preview) -> None:
    goals = ("quick", "balanced", "best")
    quick, balanced, best = (yaml.safe_load(preview(goal=goal)["yaml"]) for goal in goals)
    assert quick["lora_rank"] < balanced["lora_rank"] < best["lora_rank"]
    assert "max_steps" in quick
    assert balanced["num_train_epochs"] < best["num_train_epochs"]


def test_each_wrong_value_is_a_sentence_beside_its_field(preview: Preview) -> None:
    wrong = {
        "key.lora_rank": "0",
        "key.optim": "lion",
        "key.learning_rate": "fast",
        "key.no_such": "1",
        "price": "much",
    }
    found = preview(**wrong, name="../up", model="other", model_other="/nowhere/at all", data="gone@1")["problems"]
    assert found["key.lora_rank"] == "input should be greater than or equal to 1, not 0."
    assert found["key.optim"].startswith("'lion' is not supported")
    assert found["key.learning_rate"].startswith("input should be a valid number")
    assert found[""] == "A recipe has no key “no_such”."
    assert found["price"].startswith("A price is a number")
    assert "../up" in found["name"]
    assert "/nowhere/at all" in found["model"]
    assert "gone@1" in found["data"]
    together = preview(**{"key.fp16": "true", "key.bf16": "true"})["problems"]
    assert together[""] == "fp16 and bf16 are both true; set one of them, or neither."


def test_a_wrong_form_starts_nothing(client: TestClient, studio: Studio, form: dict[str, str]) -> None:
    answer = client.post("/train/start", data=form | {"key.lora_rank": "0"})
    assert answer.status_code == 422
    assert answer.json()["error"] == "input should be greater than or equal to 1, not 0."
    assert studio.jobs.list() == []
    assert studio.workspace.names("runs") == []


def test_what_is_typed_is_text_on_the_page(client: TestClient, preview: Preview) -> None:
    hostile = "<script>alert(1)</script>"
    found = preview(**{"key.lora_target": hostile, "model": "other", "model_other": hostile})
    assert hostile in found["yaml"]  # JSON, put on the page as text
    page = client.get("/train", params={"data": hostile}).text
    assert hostile not in page


def test_a_check_says_before_the_start_whether_it_would_work(
    client: TestClient, studio: Studio, form: dict[str, str]
) -> None:
    page = client.post("/train/check", data=form).text
    assert "every 700ms" in page
    job = ended(studio, studio.jobs.list("check")[0])
    page = client.get(f"/train/checks/{job.id}").text
    assert "Would start." in page
    assert "On a GPU, about 0." in page
    assert "Rows a second" in page, "the demo's model is measured at once"
    assert "Would start." in client.post("/train/check", data=form).text, "the same form is not checked twice"
    assert len(studio.jobs.list("check")) == 1


def test_a_check_names_what_to_mend_and_what_would_fit(
    client: TestClient, studio: Studio, form: dict[str, str]
) -> None:
    changed = {"card": "t4", "key.per_device_train_batch_size": "16", "key.bf16": "true"}
    (studio.workspace.folder / "datasets/shapes/versions/1/images/3.png").write_text("<b>no picture</b>")
    client.post("/train/check", data=form | changed)
    job = ended(studio, studio.jobs.list("check")[0])
    page = client.get(f"/train/checks/{job.id}").text
    assert "Would not start. Mend first:" in page
    assert "images/3.png" in page
    assert "bfloat16" in page


def test_old_checks_do_not_pile_up(
    client: TestClient, studio: Studio, form: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "KEPT", 1)
    for steps in "12":
        client.post("/train/check", data=form | {"key.max_steps": steps})
        ended(studio, studio.jobs.list("check")[0])
    assert len(list((studio.workspace.folder / ".checks").iterdir())) == 1
    assert len(studio.jobs.list("check")) == 1
    assert client.get(f"/train/checks/{studio.jobs.list('check')[0].id}").status_code == 200


def test_a_check_that_fails_shows_its_last_lines(client: TestClient, studio: Studio, form: dict[str, str]) -> None:
    client.post("/train/check", data=form)
    job = studio.jobs.list("check")[0]
    studio.jobs.stop(job.id)
    ended(studio, job)
    assert "did not come to its end" in client.get(f"/train/checks/{job.id}").text


def test_two_tabs_that_start_the_same_run_make_one_and_one_sentence(
    client: TestClient, studio: Studio, form: dict[str, str]
) -> None:
    answers = []
    start = {**form, "key.max_steps": "2"}

    def tab() -> None:
        answers.append(client.post("/train/start", data=start, follow_redirects=False))

    tabs = [threading.Thread(target=tab) for _ in range(2)]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    done, refused = sorted(answers, key=lambda answer: answer.status_code)
    assert done.status_code == 303
    assert done.headers["location"].endswith("runs/first")
    assert refused.status_code in (409, 422)
    assert refused.json()["error"].startswith("There is a “first” already")
    (job,) = studio.jobs.list("train")
    assert job.spec.gpus == (CPU,)
    assert ended(studio, job).state == "done", job.tail()[0]
    output = studio.workspace.folder / "runs" / "first" / "output"
    assert json.loads((output / "train_results.json").read_text())["steps"] == 2
    assert (output / "adapter_model.safetensors").is_file()
    assert 'href="runs/first"' in client.get("/train/now").text


def test_a_run_can_be_trained_anew_with_other_settings(client: TestClient, studio: Studio, shapes: str) -> None:
    folder = studio.workspace.create("runs", "earlier")
    recipe = {"model_name_or_path": "owner/model", "dataset_dir": "datasets/shapes/versions/1", "lora_rank": 5}
    recipe |= {"optim": "paged_adamw_8bit", "output_dir": "runs/earlier/output"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    page = client.get("/train", params={"run": "earlier"}).text
    assert 'name="key.lora_rank" value="5"' in page
    assert '<option value="paged_adamw_8bit" selected>' in page
    assert 'value="owner/model"' in page
    assert '<option value="' + shapes + '" selected>' in page
    assert client.get("/train", params={"run": "none"}).status_code == 404


# In place of the program: as it is, but that no step fits the memory of a card with 1 GiB.
NO_ROOM = f"""
import runpy, torch
from finetune.families.forward import LabelLoss
from finetune.memory.cards import Card
from finetune.training import oom

def full(self, *args):
    raise torch.OutOfMemoryError("CUDA out of memory")

LabelLoss.forward = full
oom.this_card = lambda: Card("a card", 1.0, (7, 5))
runpy.run_path({str(ROOT / "lensmith.py")!r}, run_name="__main__")
"""


def test_a_run_that_finds_no_memory_says_which_keys_to_change(
    client: TestClient, studio: Studio, form: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lensmith.py").write_text(NO_ROOM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    changed = {"key.disable_gradient_checkpointing": "true", "key.per_device_train_batch_size": "24"}
    client.post("/train/start", data=form | changed)
    job = ended(studio, studio.jobs.list("train")[0])
    assert job.state == "failed"
    page = client.get("/runs/first").text
    assert "out of memory; it should fit with" in page
    assert "disable_gradient_checkpointing=false" in page
    client.cookies.set("lensmith_language", "zh")
    assert "GPU 显存不足" in client.get("/runs/first").text
