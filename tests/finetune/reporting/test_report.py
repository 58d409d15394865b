from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from finetune.recipe.load import make_recipe
from finetune.reporting.comparison import write_comparison, write_evaluation
from finetune.reporting.sample import Sample
from finetune.reporting.training_report import write_training_report

HOSTILE = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """The tags of a page, and the sources of its images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def test_a_training_report_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "training_loss.png").write_bytes(b"png")
    recipe = make_recipe({"model_name_or_path": HOSTILE, "lora_rank": 3})
    page = write_training_report(tmp_path, recipe, {"loss": 0.123456, "eval_loss": None}).read_text()
    found = Tags(page)
    assert "script" not in found.tags
    assert found.sources == ["data:image/png;base64,cG5n"]
    assert "0.1235" in page
    assert "lora_rank" in page
    assert "lora_dropout" not in page, "defaults are left out"


def test_a_training_report_shows_answers_what_comes_next_and_what_it_was_made_of(tmp_path: Path) -> None:
    surroundings = {"base_model": HOSTILE, "data_sha256": "0a1b", "packages": {"torch": "2.9", "peft": None}}
    (tmp_path / "environment.json").write_text(json.dumps(surroundings))
    samples = [Sample([], HOSTILE, "red", before, "red") for before in ("blue", HOSTILE, "Red ")]
    recipe = make_recipe({"model_name_or_path": "m"})
    result = {"steps": 1200, "eval_loss": 0.5, "broken": "", "dropped_rows": 0, "interrupted": None}
    page = write_training_report(tmp_path, recipe, result, samples).read_text()
    assert "script" not in Tags(page).tags
    assert "Equal to the label: 1 of 3 before, 3 after." in page
    assert page.count('<td data-head="after"><span class="right">red') == 3, "named in its cell, for phones"
    assert "lensmith export" in page
    assert "<td>validation loss</td><td>0.5</td>" in page
    assert "<td>steps</td><td>1,200</td>" in page
    assert "dropped" not in page, "what did not happen is left out"
    assert "<td>sha256 of the data</td><td>0a1b</td>" in page
    assert "<td>torch 2.9</td>" in page
    stopped = write_training_report(tmp_path, recipe, result | {"interrupted": 2}).read_text()
    assert "the same command goes on from there" in stopped
    assert "lensmith export" not in stopped


def test_a_comparison_shows_differing_answers_first_and_escapes_them(tmp_path: Path) -> None:
    def record(predict: str) -> dict[str, object]:
        return {"prompt": HOSTILE, "predict": predict, "label": "red", "images": ["/nowhere/gone.png"]}

    ours = [record("red"), record(HOSTILE)]
    page = write_comparison(tmp_path / "c.html", ours, [record("red"), record("blue")], [["anls", "1", "2", "3"]])
    text = page.read_text()
    assert "script" not in Tags(text).tags
    assert text.index("blue") < text.index('class="right">red')
    assert "1 of 2 answers differ; 2 are shown" in text
    assert "gone.png is gone" in text


def test_an_evaluation_shows_wrong_answers_first_and_escapes_them(tmp_path: Path) -> None:
    answers = [{"prompt": "?", "predict": predict, "label": "red"} for predict in ("red", HOSTILE)]
    page = write_evaluation(tmp_path / "e.html", HOSTILE, answers, [["exact_match", "50.00", "0.00 to 100.00"]])
    text = page.read_text()
    assert "script" not in Tags(text).tags
    assert text.index('class="wrong"') < text.index('class="right">red')
    assert "50.00" in text


def test_pages_fit_a_phone_and_say_when_and_by_what_they_were_made(tmp_path: Path) -> None:
    text = write_evaluation(tmp_path / "e.html", "run", [], []).read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert re.search(r"Made 20\d\d-\d\d-\d\d \d\d:\d\d UTC by lensmith [\w.]+, torch [\w.+]+, transformers", text)
