"""The page Evaluate: base and runs answer the same rows; scores, the wall of answers, and notes for the data."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from studio.datasets.store import dataset_of
from studio.datasets.versions import draft_of, row_at
from studio.evaluation.annotations import read_annotations
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.paths import SHAPES_VL
from tests.support.studio.applications import copy_datasets, imported_once
from tests.support.studio.datasets import lines, picture
from tests.support.studio.tuned_run import WORD, tuned_run

HOSTILE = "<img src=x onerror=alert(1)>"
# label, the base's answer, the run's answer
ROWS = [
    ("red", "blue", "red"),
    ("green", "green", "gold"),
    ("blue", "x", HOSTILE),
    ("blue", "y", "blu"),
    ("yellow", "Yellow ", "yellow"),
]


def question(index: int) -> str:
    return f"what colour, {index}?"


def row_at_line(studio: Studio, line: int) -> int:
    return row_at(dataset_of(studio.workspace, "colours"), 1, "train", line)


def record(index: int, label: str, answer: str) -> dict[str, Any]:
    image = f"datasets/colours/files/images/{index}.png"
    return {
        "index": index,
        "prompt": f"<image>{question(index)}",
        "predict": answer,
        "label": label,
        "images": [image],
    }


def write_predictions(folder: Path, answers: list[str]) -> None:
    folder.mkdir(parents=True)
    records = [record(index, ROWS[index][0], answer) for index, answer in enumerate(answers)]
    (folder / "generated_predictions.jsonl").write_bytes(lines(*records))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace's datasets: one of the rows."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{question(index)}"},
                {"role": "assistant", "content": label},
            ]
        }
        | {"images": [f"images/{index}.png"]}
        for index, (label, _, _) in enumerate(ROWS)
    ]
    pictures = {f"images/{index}.png": picture() for index in range(len(ROWS))}
    return imported_once(tmp_path_factory.mktemp("colours"), pictures | {"train.jsonl": lines(*rows)}, "colours")


@pytest.fixture
def answered(studio: Studio, datasets: Path) -> str:
    """An evaluation whose job is over, on the rows of an imported dataset."""
    copy_datasets(datasets, studio)
    folder = studio.workspace.create("evaluations", "first")
    write_predictions(folder / "base", [base for _, base, _ in ROWS])
    write_predictions(folder / "run-tiny", [tuned for _, _, tuned in ROWS])
    plan = {
        "name": "first",
        "dataset": "colours",
        "version": 1,
        "split": "train",
        "runs": ["tiny"],
    }
    plan |= {"model": str(SHAPES_VL), "max_samples": None, "max_new_tokens": 8}
    (folder / "evaluation.json").write_text(json.dumps(plan))
    score = {"mean": 0.4, "low": 0.1, "high": 0.8}
    results = {"sides": ["base", "run-tiny"], "scores": {side: {"exact_match": score} for side in ("base", "run-tiny")}}
    metrics = {"exact_match": {"mean": 0.2, "low": -0.4, "high": 0.8, "p": 0.7}}
    results["differences"] = [{"of": "run-tiny", "from": "base", "metrics": metrics}]
    (folder / "results.json").write_text(json.dumps(results))
    return "first"


def questions(page: str) -> list[str]:
    return re.findall(r'<p class="question">(.*?)</p>', page, re.DOTALL)


def test_scores_have_intervals_and_the_difference_is_a_sentence(client: TestClient, answered: str) -> None:
    page = html.unescape(client.get(f"/evaluate/{answered}").text)
    assert "<b>40.0</b>" in page
    assert "10.0 \N{EN DASH} 80.0" in page
    assert "Between “tiny” and “base” no difference is certain: +20.0 points" in page


def test_the_wall_shows_the_worst_answers_first_with_all_three_texts(client: TestClient, answered: str) -> None:
    page = client.get(f"/evaluate/{answered}").text
    order = [int(question.split()[-1].rstrip("?")) for question in questions(page)]
    assert order == [1, 2, 3, 0, 4], "wrong ones by their distance, then those that are right"
    assert "<image>" not in html.unescape(questions(page)[0])
    for text in ("what colour, 1?", "gold", "green"):
        assert text in page


@pytest.mark.parametrize(
    ("change", "rows"), [("mended", [0]), ("broken", [1]), ("both_wrong", [2, 3]), ("both_right", [4])]
)
def test_rows_are_filtered_by_what_changed(client: TestClient, answered: str, change: str, rows: list[int]) -> None:
    page = client.get(f"/evaluate/{answered}", params={"change": change}).text
    assert [int(question.split()[-1].rstrip("?")) for question in questions(page)] == rows


def test_an_unknown_filter_is_refused(client: TestClient, answered: str) -> None:
    answer = client.get(f"/evaluate/{answered}", params={"change": "other"})
    assert answer.status_code == 400
    assert "change" in answer.json()["error"]


def test_what_a_model_writes_is_text(client: TestClient, answered: str) -> None:
    page = client.get(f"/evaluate/{answered}").text
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page


def test_pictures_are_written_anew_and_only_those_of_the_rows_are_sent(
    client: TestClient, studio: Studio, answered: str
) -> None:
    answer = client.get(f"/evaluate/{answered}/images/3/0")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).format == "JPEG"
    secret = studio.workspace.folder / "datasets/colours/files/images/3.png"
    secret.write_text("root:x:0:0")
    for path in ("images/3/0", "images/3/9", "images/99/0", "images/3/-1"):
        answer = client.get(f"/evaluate/{answered}/{path}")
        assert answer.status_code in (400, 404), path
        assert "root:" not in answer.text


def test_notes_about_rows_go_to_the_data(client: TestClient, studio: Studio, answered: str) -> None:
    dataset = studio.workspace.folder / "datasets" / "colours"
    marked = {"verdict": "wrong_answer", "answer": "blue & <b>gold</b>", "note": "looks blue", "side": "run-tiny"}
    answer = client.post(f"/evaluate/{answered}/rows/3", data=marked)
    assert answer.status_code == 200
    assert "blue &amp; &lt;b&gt;gold&lt;/b&gt;" in answer.text
    client.post(f"/evaluate/{answered}/rows/1", data={"verdict": "bad_row"})
    found = read_annotations(dataset)
    assert found.keys() == {(1, "train", 3), (1, "train", 1)}
    kept = found[1, "train", 3]
    assert (kept.verdict, kept.answer, kept.label, kept.predict) == ("wrong_answer", marked["answer"], "blue", "blu")
    assert "looks blue" in client.get(f"/evaluate/{answered}").text
    page = client.get("/data/colours", headers={"accept": "text/html"}).text
    assert "blue &amp; &lt;b&gt;gold&lt;/b&gt;" in page, "the draft of the next version has the right answer"
    drafted = draft_of(dataset_of(studio.workspace, "colours"))
    assert [row.number for row in drafted.all_rows() if row.left_out] == [row_at_line(studio, 2)]
    client.post(f"/evaluate/{answered}/rows/3", data={"verdict": "hard"})
    flagged = drafted.get(row_at_line(studio, 4))
    assert flagged is not None
    assert flagged.flagged
    assert flagged.record["messages"][-1]["content"] == "blue", "another verdict takes the first one's answer back"
    client.post(f"/evaluate/{answered}/rows/3", data={"verdict": "none"})
    assert read_annotations(dataset).keys() == {(1, "train", 1)}
    with (dataset / "annotations.jsonl").open("a") as file:
        file.write('{"version": 1, "spl')  # a disk that was full
    assert read_annotations(dataset).keys() == {(1, "train", 1)}


def test_a_note_that_says_nothing_is_refused(client: TestClient, studio: Studio, answered: str) -> None:
    answer = client.post(f"/evaluate/{answered}/rows/3", data={"verdict": "wrong_answer", "answer": " "})
    assert answer.status_code == 422
    assert answer.json()["error"] == "Write the answer that would be right."
    assert client.post(f"/evaluate/{answered}/rows/3", data={"verdict": "great"}).status_code == 422
    assert client.post(f"/evaluate/{answered}/rows/77", data={"verdict": "hard"}).status_code == 404
    assert read_annotations(studio.workspace.folder / "datasets" / "colours") == {}


def test_without_a_run_the_page_says_where_to_make_one(client: TestClient, shapes: str) -> None:
    page = client.get("/evaluate").text
    assert "No run has ended with weights yet." in page
    assert 'href="train"' in page


def run_of(studio: Studio, name: str, model: str = str(SHAPES_VL)) -> None:
    """A run that looks as if it had ended."""
    output = studio.workspace.create("runs", name) / "output"
    output.mkdir()
    (output / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": model}))
    (output / "adapter_model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runs": []}, "Tick at least one run."),
        ({"runs": ["gone"]}, "The run “gone” has no weights that can answer."),
        ({"runs": ["one", "other"]}, "These runs have different base models"),
        ({"data": "shapes@7/validation"}, "There is no “shapes@7” here"),
        ({"data": "shapes@1/nothing"}, "There is no “nothing” here"),
        ({"samples": "few"}, "The number of rows is a whole number from 1"),
        ({"tokens": "0"}, "The longest answer is a whole number"),
        ({"engine": "abacus"}, "“engine” is missing or has a value"),
        ({"name": "../x"}, "“../x” cannot be a name here"),
    ],
)
def test_what_is_chosen_wrongly_is_a_sentence_and_starts_nothing(
    client: TestClient, studio: Studio, shapes: str, changes: dict[str, Any], sentence: str
) -> None:
    run_of(studio, "one")
    run_of(studio, "other", "owner/another-base")
    form = {"data": f"{shapes}/validation", "name": "first", "runs": ["one"]} | changes
    answer = client.post("/evaluate", data=form)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"].startswith(sentence)
    assert studio.jobs.list() == []
    assert studio.workspace.names("evaluations") == []


def test_an_evaluation_answers_scores_and_goes_on_after_a_failure(
    client: TestClient, studio: Studio, shapes: str
) -> None:
    start = {"data": shapes, "model": str(SHAPES_VL), "goal": "quick", "name": "tiny", "key.max_steps": "2"}
    assert client.post("/train/start", data=start, follow_redirects=False).status_code == 303
    until("the run is over", lambda: not studio.jobs.list("train")[0].active)
    chosen = {"data": f"{shapes}/validation", "name": "first", "runs": ["tiny"], "samples": "4", "tokens": "4"}
    file = studio.workspace.folder / "datasets/shapes/versions/1/images/0.png"
    content = file.read_bytes()
    file.write_text("no picture")
    assert client.post("/evaluate", data=chosen, follow_redirects=False).headers["location"].endswith("evaluate/first")
    until("the job is over", lambda: not studio.jobs.list("evaluate")[0].active)
    page = client.get("/evaluate/first").text
    assert "did not come to its end" in page
    assert "images/0.png" in page
    file.write_bytes(content)
    client.post("/evaluate/first/resume", follow_redirects=False)
    until("the job is over", lambda: not studio.jobs.list("evaluate")[0].active)
    assert studio.jobs.list("evaluate")[0].state == "done", studio.jobs.list("evaluate")[0].tail()[0]
    page = client.get("/evaluate/first").text
    assert len(questions(page)) == 4
    assert "Exact match" in page
    results = json.loads((studio.workspace.folder / "evaluations/first/results.json").read_text())
    assert results["sides"] == ["base", "run-tiny"]
    assert results["differences"][0]["of"] == "run-tiny"
    assert 0 < results["differences"][0]["metrics"]["exact_match"]["p"] <= 1
    assert client.get("/evaluate/first/progress").headers["hx-refresh"] == "true"


def test_an_engine_that_is_installed_can_answer(client: TestClient, studio: Studio, shapes: str) -> None:
    tuned_run(studio.workspace.folder, "tiny")
    assert '<option value="transformers">transformers, on the merged model</option>' in client.get("/evaluate").text
    chosen = {"data": f"{shapes}/validation", "name": "served", "runs": ["tiny"], "samples": "4", "tokens": "4"}
    client.post("/evaluate", data=chosen | {"engine": "transformers"})
    until("the base has answered", lambda: "run-tiny answers." in studio.jobs.list("evaluate")[0].tail()[0])
    until("the job is over", lambda: not studio.jobs.list("evaluate")[0].active)
    job = studio.jobs.list("evaluate")[0]
    assert job.state == "done", job.tail()[0]
    assert job.tail()[0].count("Starting transformers.") == 2, "for the base, and for the run"
    folder = studio.workspace.folder / "evaluations/served"
    base, run = ((folder / side / "generated_predictions.jsonl").read_text() for side in ("base", "run-tiny"))
    four_tokens = " ".join([WORD] * 4)
    assert (base.count(four_tokens), run.count(four_tokens)) == (0, 4)
    assert "transformers, on the merged model" in client.get("/evaluate/served").text
