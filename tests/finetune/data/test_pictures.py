"""Folders of pictures without a data file: captions beside them, or classes by their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finetune.cli import check, init
from finetune.data.datasets import load_rows
from finetune.errors import FinetuneError
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from tests.support.paths import SHAPES_VL

MakeRecipe = Callable[..., Recipe]
CAPTION = "<image>Describe this image."


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Makes a folder of files: True is a picture, a text or bytes are written, anything else as JSON."""

    def make(files: dict[str, Any]) -> Path:
        for name, content in files.items():
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is True:
                content = (dataset / "images/0.png").read_bytes()
            elif not isinstance(content, str | bytes):
                content = json.dumps(content)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "photos"

    return make


def chats(recipe: Recipe, name: Path | str) -> dict[str, tuple[str, ...]]:
    """Each picture's turns by its name below the folder `photos`."""
    found = {}
    for row in load_rows(str(name), recipe).rows:
        turns = ["".join(part.get("text", f"<{part['type']}>") for part in turn["content"]) for turn in row.messages]
        (image,) = row.images
        assert Path(image).is_file()
        found[str(Path(image)).rpartition("photos/")[2]] = tuple(turns)
    return found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a cat\n"),
        ("a.TXT", "a cat"),
        ("a.jpg.txt", "a cat"),
        ("a.caption", "a cat"),
        ("a.txt", "\ufeffa cat".encode()),
        ("a.txt", "a cat".encode("utf-16")),
        ("a.json", {"caption": "a cat", "url": "https://x.example", "width": 64}),  # as img2dataset writes it
        ("a.json", {"text": "a cat"}),
    ],
)
def test_a_caption_is_a_file_beside_its_picture(
    recipe: MakeRecipe, folder: Callable[..., Path], name: str, content: Any
) -> None:
    photos = folder({"deep/er/a.jpg": True, f"deep/er/{name}": content, "b.PNG": True, "b.txt": "b", "notes.txt": "x"})
    assert chats(recipe(), photos) == {"b.PNG": (CAPTION, "b"), "deep/er/a.jpg": (CAPTION, "a cat")}


def test_a_pictures_json_may_hold_any_layout(recipe: MakeRecipe, folder: Callable[..., Path]) -> None:
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a cat"}]
    photos = folder({"1.png": True, "1.json": {"image": "elsewhere/9.jpg", "conversations": turns}})
    assert chats(recipe(), photos) == {"1.png": ("<image>What?", "a cat")}


def test_folders_are_classes(recipe: MakeRecipe, folder: Callable[..., Path]) -> None:
    photos = folder({"cat/1.png": True, "dog/1.png": True, "dog/2.png": True, "dog/Thumbs.db": "", ".x/1.png": True})
    question = "<image>What is shown in this image? Answer with one of: cat, dog."
    assert chats(recipe(), photos) == {
        "cat/1.png": (question, "cat"),
        "dog/1.png": (question, "dog"),
        "dog/2.png": (question, "dog"),
    }


@pytest.mark.parametrize("above", ["", "pets/"])
def test_a_split_is_its_folder_and_every_split_has_the_same_question(
    recipe: MakeRecipe, folder: Callable[..., Path], tmp_path: Path, above: str
) -> None:
    photos = folder({f"{above}{name}/1.png": True for name in ("train/cat", "train/dog", "val/cat")})
    question = "<image>What is shown in this image? Answer with one of: cat, dog."
    assert chats(recipe(), photos) == {
        f"{above}train/cat/1.png": (question, "cat"),
        f"{above}train/dog/1.png": (question, "dog"),
    }
    entry = {"held": {"file_name": "photos", "split": "val"}, "none": {"file_name": "photos", "split": "test"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    made = recipe(dataset_dir=str(tmp_path), media_dir=str(tmp_path / "elsewhere"))
    assert chats(made, "held") == {f"{above}val/cat/1.png": (question, "cat")}
    with pytest.raises(FinetuneError, match="has no picture of the split 'test'"):
        load_rows("none", made)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"1.png": True, "2.png": True}, r"its 2 pictures have no answers: write .* \(cat.txt for cat.png\)"),
        ({"cat/1.png": True}, "its 1 picture has no answers"),
        ({"cat/1.png": True, "dog/1.png": True, "dog/puppy/1.png": True}, "one folder a class, none inside another"),
        ({"cat/1.png": True, "dog/1.png": True, "1.png": True}, "one folder a class, none inside another"),
        ({"notes.docx": "", "a/b.txt": "no picture"}, "no data file of the split 'train', and no pictures"),
        ({".git/x.json": []}, "no pictures"),
        ({"a.png": True, "meta_cap.json": {"a": {"caption": "a cat"}}}, "names captions by their pictures"),
        ({"a.png": True, "a.json": {"version": "5", "shapes": []}}, "cannot tell its format; .* it has version"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_that_says_what_to_do(
    recipe: MakeRecipe, folder: Callable[..., Path], files: dict[str, Any], complaint: str
) -> None:
    photos = folder(files)
    with pytest.raises(FinetuneError, match=complaint):
        load_rows(str(photos), recipe())
    result = CliRunner().invoke(init, [str(photos), "--out", str(photos / "r.yaml"), "--model", str(SHAPES_VL)])
    assert (result.exit_code, result.output.count("Error: ")) == (1, 1)
    assert not (photos / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, r"photos, row 2: b.png has no caption; write it into b.txt, or move the picture out"),
        ({"b.txt": " \n"}, "b.png has no caption"),
        ({"b.txt": "Stra\xdfe".encode("cp1252")}, "b.png: its caption b.txt is not UTF-8 text; save it as UTF-8"),
        ({"b.txt": "x" * 100_001}, "b.txt has over 100,000 bytes, which is no caption"),
        ({"b.json": "{"}, "b.json is not JSON"),
        ({"b.json": "[" * 5000}, "b.json is not JSON"),
        ({"b.json": [1]}, "b.json must hold one object"),
    ],
)
def test_a_picture_without_its_caption_is_a_broken_row(
    recipe: MakeRecipe, folder: Callable[..., Path], files: dict[str, Any], complaint: str
) -> None:
    photos = folder({"a.png": True, "a.txt": "a", "b.png": True} | files)
    with pytest.raises(FinetuneError, match=complaint):
        load_rows(str(photos), recipe())
    assert chats(recipe(bad_rows="skip"), photos) == {"a.png": (CAPTION, "a")}


def test_a_caption_that_changes_is_read_anew(recipe: MakeRecipe, folder: Callable[..., Path]) -> None:
    photos = folder({"a.png": True, "a.txt": "old"})
    before = load_rows(str(photos), recipe()).digest
    folder({"a.txt": "new"})
    assert chats(recipe(), photos) == {"a.png": (CAPTION, "new")}
    assert load_rows(str(photos), recipe()).digest != before


@pytest.mark.parametrize("kind", ["captions", "classes", "json"])
def test_init_writes_a_recipe_that_starts(
    folder: Callable[..., Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, Any] = {}
    for number in range(4):
        files[f"{'cat' if number % 2 else 'dog'}/{number}.png"] = True
        if kind != "classes":
            text = {"question": "What?", "answer": "a pet"} if kind == "json" else "a pet"
            files[f"{'cat' if number % 2 else 'dog'}/{number}.{'json' if kind == 'json' else 'txt'}"] = text
    monkeypatch.chdir(folder(files))
    out = tmp_path / "r.yaml"
    result = CliRunner().invoke(init, [".", "--out", str(out), "--model", str(SHAPES_VL)])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(check, [str(out)])
    assert result.output.splitlines()[-1] == "Would start.", result.output
    assert "10 steps of up to" in result.output
    assert "# of about 10 steps" in out.read_text()
    rows = chats(load_recipe(out), "photos")
    assert len(rows) == 4
    assert {answer for _, answer in rows.values()} == ({"cat", "dog"} if kind == "classes" else {"a pet"})
