"""Rows are found, changed and saved as versions; the original stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.datasets.store import dataset_of
from studio.datasets.versions import correct_answer, save_draft
from studio.errors import StudioError
from studio.web.render import Studio
from tests.support.studio.applications import copy_datasets, imported_once
from tests.support.studio.datasets import lines, picture, read_rows

COLOURS = ("red", "green", "blue", "yellow")


def rows(page: str) -> list[str]:
    """The places of the rows on a page, in order."""
    return re.findall(r'<span title="([^"]+)">', page)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace's datasets: one of 30 rows in two files, the last of which is broken."""
    records = [{"question": f"Number {n}? {'long ' * n}", "answer": f"the answer {n}"} for n in range(15)]
    boxes = {"question": "<image>Where?", "answer": "[10, 5, 30, 25]", "image": "a.png"}
    other = [boxes] * 14 + [{"question": "?", "answer": 7}]
    files = {"one.jsonl": lines(*records), "two.jsonl": lines(*other), "a.png": picture()}
    return imported_once(tmp_path_factory.mktemp("shapes"), files)


@pytest.fixture
def shapes(client: TestClient, studio: Studio, datasets: Path) -> TestClient:
    """A client of a studio with a copy of them."""
    copy_datasets(datasets, studio)
    return client


def page(client: TestClient, query: str = "") -> str:
    return client.get(f"/data/mine?{query}").text


def test_problems_come_first_and_pages_follow(shapes: TestClient) -> None:
    first, second = rows(page(shapes)), rows(page(shapes, "page=2"))
    assert first[0] == "two.jsonl, row 15"
    assert (len(first), len(second)) == (24, 6)
    assert len({*first, *second}) == 30
    assert rows(page(shapes, "page=99")) == second


def test_rows_are_found_by_text_source_length_and_state(shapes: TestClient) -> None:
    assert rows(page(shapes, "text=THE ANSWER 7")) == ["one.jsonl, row 8"]
    assert len(rows(page(shapes, "source=one.jsonl"))) == 15
    assert rows(page(shapes, "show=problems")) == ["two.jsonl, row 15"]
    assert rows(page(shapes, "order=longest&source=one.jsonl"))[0] == "one.jsonl, row 15"
    short = rows(page(shapes, "max_tokens=20&source=one.jsonl"))
    assert 0 < len(short) < 15
    assert rows(page(shapes, "min_tokens=21&source=one.jsonl")) == [
        place for place in rows(page(shapes, "source=one.jsonl")) if place not in short
    ]
    for pattern in ("%25", "answer_7", "%5C"):  # signs of patterns are searched for as they are
        assert "No row is like that." in page(shapes, f"text={pattern}")


@pytest.mark.parametrize("query", ["page=-1", "page=x", "order=1;drop", "show='", "min_tokens=a", "text='%22)--"])
def test_a_query_that_makes_no_sense_is_harmless(shapes: TestClient, query: str) -> None:
    assert shapes.get(f"/data/mine?{query}").status_code == 200


def test_boxes_are_drawn_in_the_pixels_of_the_picture(shapes: TestClient) -> None:
    drawn = '<rect x="10.0" y="5.0" width="20.0" height="20.0"></rect>'
    assert drawn in page(shapes, "source=two.jsonl")
    shapes.post("/data/mine/settings", data={"box_format": "relative"})
    moved = page(shapes, "source=two.jsonl")
    assert drawn not in moved
    assert '<rect x="0.4" y="0.15"' in moved


def test_changes_become_a_version_and_the_original_stays(shapes: TestClient, studio: Studio) -> None:
    dataset = dataset_of(studio.workspace, "mine")
    original = {path: path.read_bytes() for path in dataset.version().folder.rglob("*")}
    uploaded = (dataset.files / "one.jsonl").read_bytes()
    shapes.post("/data/mine/marks", data={"action": "leave_out", "number": ["1", "2"]})
    shapes.post("/data/mine/marks", data={"action": "flag:3"})
    shapes.post("/data/mine/rows/4", data={"text": ["New?", "new"]})
    draft = page(shapes)
    assert "4 rows differ from version 1" in draft
    assert dataset.version().number == 1
    shapes.post("/data/mine/save", data={"note": "tidied"})
    assert {path: path.read_bytes() for path in dataset.versions()[1].folder.rglob("*")} == original
    assert (dataset.files / "one.jsonl").read_bytes() == uploaded
    second = dataset.version()
    assert (second.number, second.note, second.trainable) == (2, "tidied", 27)
    text = (second.folder / "train.jsonl").read_text()
    assert '"new"' in text
    assert "Number 0?" not in text
    assert rows(page(shapes, "show=left_out")) == ["one.jsonl, row 1", "one.jsonl, row 2"]
    assert rows(page(shapes, "show=flagged")) == ["one.jsonl, row 3"]
    assert "This is version 1" in page(shapes, "version=1")


def test_reading_the_files_again_waits_for_changes_to_be_saved(shapes: TestClient, studio: Studio) -> None:
    shapes.post("/data/mine/marks", data={"action": "leave_out:1"})
    refused = shapes.post("/data/mine/import", data={"columns": ""})
    assert "There are changes that are not saved." in refused.json()["error"]
    assert "1 row differs" in page(shapes)
    shapes.post("/data/mine/save")
    read_rows(shapes, "mine")
    assert [version.number for version in dataset_of(studio.workspace, "mine").versions()] == [3, 2, 1]


def test_changes_can_be_taken_back(shapes: TestClient, studio: Studio) -> None:
    shapes.post("/data/mine/marks", data={"action": "leave_out:1"})
    shapes.post("/data/mine/marks", data={"action": "take_back:1"})
    assert "left_out" not in re.findall(r'name="show" value="(\w+)"', page(shapes))
    shapes.post("/data/mine/discard")
    assert "not saved yet" not in page(shapes)
    assert "nothing was changed" in shapes.post("/data/mine/save").json()["error"]
    assert len(dataset_of(studio.workspace, "mine").versions()) == 1


def test_a_text_that_breaks_a_row_is_refused(shapes: TestClient) -> None:
    number = 16
    answer = shapes.post(f"/data/mine/rows/{number}", data={"text": ["no mark and <image><image>", "x"]})
    assert "the text has <image> 2 times, the row has 1 image" in answer.json()["error"]
    assert "[10, 5, 30, 25]" in shapes.get(f"/data/mine/rows/{number}").text


def test_an_answer_of_an_evaluation_goes_back_to_its_row(shapes: TestClient, studio: Studio) -> None:
    dataset = dataset_of(studio.workspace, "mine")
    shapes.post("/data/mine/marks", data={"action": "leave_out:1"})
    save_draft(dataset)
    changed = correct_answer(dataset, 2, "train", 1, "better")
    assert (changed.number, changed.record["messages"][-1]["content"]) == (2, "better")
    with pytest.raises(StudioError):
        correct_answer(dataset, 2, "train", 999, "better")


def test_a_dataset_is_only_removed_by_its_name(shapes: TestClient, studio: Studio) -> None:
    assert "Type mine" in shapes.post("/data/mine/remove", data={"confirm": "other"}).json()["error"]
    shapes.post("/data/mine/remove", data={"confirm": "mine"})
    assert shapes.get("/data/mine").status_code == 404
    assert studio.workspace.names("datasets") == []


@pytest.mark.parametrize("path", ["data/none", "data/mine/rows/99", "data/mine?version=9", "data/mine/pictures/1/5"])
def test_what_is_not_there_is_said(shapes: TestClient, path: str) -> None:
    assert shapes.get(f"/{path}").status_code == 404
