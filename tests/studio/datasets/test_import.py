"""What is dropped becomes rows that `lensmith train` reads."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.recipe.load import make_recipe
from studio.datasets.store import dataset_of
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.studio.datasets import imported, lines, new_dataset, picture, read_rows, zipped

CAT = {"question": "<image>What?", "answer": "a cat", "image": "cat.png"}


def trained_on(studio: Studio, name: str = "mine", split: str = "dataset") -> list[Row]:
    """The rows as training reads them of the newest version."""
    keys = dataset_of(studio.workspace, name).recipe_keys()
    recipe = make_recipe({"model_name_or_path": "", **keys})
    return list(load_rows(str(getattr(recipe, split)), recipe).rows)


def chats(rows: list[Row]) -> list[tuple[str, str]]:
    """(question, answer) of rows with one turn."""
    return [(row.messages[0]["content"][-1]["text"], row.messages[1]["content"][0]["text"]) for row in rows]


def test_pictures_with_texts_of_the_same_name_become_captions(client: TestClient, studio: Studio) -> None:
    files = {"pets/cat.jpg": picture(kind="JPEG"), "pets/cat.txt": b"eine Katze\n", "pets/dog.png": picture()}
    page = imported(client, files | {"pets/dog.png.txt": b"a dog"})
    rows = trained_on(studio)
    assert chats(rows) == [("Describe this image.", "eine Katze"), ("Describe this image.", "a dog")]
    assert all(Path(image).is_file() for row in rows for image in row.images)
    assert "eine Katze" in page


def test_folders_of_pictures_become_classes(client: TestClient, studio: Studio) -> None:
    imported(client, {"all.zip": zipped({"animals/cat/1.png": picture(), "animals/dog/1.png": picture("blue")})})
    question = "What is shown in this image? Answer with one of: cat, dog."
    assert chats(trained_on(studio)) == [(question, "cat"), (question, "dog")]


def test_the_question_can_be_another(client: TestClient, studio: Studio) -> None:
    name = new_dataset(client, files={"cat.png": picture(), "cat.txt": b"a cat"})
    read_rows(client, name, ask_for="What is it?")
    assert chats(trained_on(studio)) == [("What is it?", "a cat")]


def test_pictures_alone_wait_for_their_answers(client: TestClient, studio: Studio) -> None:
    page = imported(client, {"1.png": picture(), "2.png": picture()})
    assert "No row can be trained on yet." in page
    answer = client.post(
        "/data/mine/rows/1", data={"text": ["<image>What?", "red"], "save": "1"}, follow_redirects=False
    )
    assert answer.status_code == 303
    client.post("/data/mine/save")
    assert chats(trained_on(studio)) == [("What?", "red")]


def test_an_image_folder_of_hugging_face_is_read(client: TestClient, studio: Studio) -> None:
    imported(
        client, {"a/train/metadata.jsonl": lines({"file_name": "0.png", "text": "red"}), "a/train/0.png": picture()}
    )
    assert chats(trained_on(studio)) == [("Describe this image.", "red")]


def test_splits_are_told_by_names(client: TestClient, studio: Studio) -> None:
    imported(client, {"train.jsonl": lines(CAT, CAT), "val.jsonl": lines(CAT), "cat.png": picture()})
    assert len(trained_on(studio)) == 2
    assert len(trained_on(studio, split="eval_dataset")) == 1


def test_pictures_are_found_where_they_are_and_not_where_the_file_says(client: TestClient, studio: Studio) -> None:
    record = CAT | {"image": "C:/Users/me/pictures/b/cat.png"}
    files = {"rows.json": b"[" + lines(record) + b"]", "x/a/cat.png": picture(), "x/b/cat.png": picture("blue")}
    imported(client, files)
    (row,) = trained_on(studio)
    assert Path(row.images[0]).resolve().parts[-2:] == ("b", "cat.png")


@pytest.mark.parametrize("kind", ["parquet", "base64"])
def test_pictures_inside_the_data_become_files(client: TestClient, studio: Studio, tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        image = {"bytes": picture(), "path": None}
        table = pyarrow.Table.from_pylist([{"image": image, "question": "What?", "answer": "red"}])
        pyarrow.parquet.write_table(table, path)
        imported(client, {path.name: path.read_bytes()})
    else:
        data = "data:image/png;base64," + base64.b64encode(picture()).decode()
        imported(client, {"rows.jsonl": lines(CAT | {"image": data})})
    (row,) = trained_on(studio)
    assert Path(row.images[0]).read_bytes() == picture()


def test_every_kind_of_turn_is_read_again_as_it_was(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "No", "loss": False},
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "image": "cat.png"}]},
        {"role": "assistant", "content": "It rains."},
    ]
    record = {"messages": turns, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    (tmp_path / "rows.jsonl").write_bytes(lines(record))
    (tmp_path / "cat.png").write_bytes(picture())
    imported(client, {"rows.jsonl": lines(record), "cat.png": picture()})
    (expected,) = load_rows(str(tmp_path / "rows.jsonl"), make_recipe({"model_name_or_path": ""})).rows
    (found,) = trained_on(studio)
    assert (found.messages, found.tools, found.unlabelled) == (expected.messages, expected.tools, expected.unlabelled)
    assert Path(found.images[0]).read_bytes() == picture()


def test_unknown_columns_are_mapped_by_clicking(client: TestClient, studio: Studio) -> None:
    table = b"bild;frage;antwort;nummer\ncat.png;Was ist das?;eine Katze;7\n"
    page = imported(client, {"umfrage.csv": table, "cat.png": picture()})
    assert "Which column is what?" in page
    assert "eine Katze" in page
    refused = client.post("/data/mine/import", data={"question": "frage"})
    assert "Choose the column with the answers" in refused.json()["error"]
    read_rows(client, "mine", question="frage", answer="antwort", image="bild")
    assert chats(trained_on(studio)) == [("Was ist das?", "eine Katze")]


def test_a_column_of_answers_is_enough(client: TestClient, studio: Studio) -> None:
    name = new_dataset(client, files={"rows.jsonl": lines({"pic": "cat.png", "mark": 3}), "cat.png": picture()})
    assert "Which column is what?" in read_rows(client, name)
    read_rows(client, name, answer="mark", image="pic", ask_for="How many?")
    assert chats(trained_on(studio)) == [("How many?", "3")]


def test_data_on_this_machine_stays_where_it_is(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(picture())
    (tmp_path / "photos" / "rows.jsonl").write_bytes(lines(CAT))
    client.post("/data", data={"source": "path", "value": str(tmp_path / "photos")})
    until("the rows are read", lambda: client.get("/data/photos/progress").status_code == 204)
    (row,) = trained_on(studio, "photos")
    assert row.images == [tmp_path / "photos" / "cat.png"]


def test_added_files_make_a_new_version(client: TestClient, studio: Studio) -> None:
    imported(client, {"cat.png": picture(), "cat.txt": b"a cat"})
    for name, data in {"dog.png": picture("blue"), "dog.txt": b"a dog"}.items():
        client.put(f"/data/mine/files/{name}", content=data)
    read_rows(client, "mine")
    assert [version.trainable for version in dataset_of(studio.workspace, "mine").versions()] == [2, 1]


def test_a_dataset_info_of_llama_factory_says_the_columns(client: TestClient, studio: Studio) -> None:
    columns = {"prompt": "frage", "response": "antwort", "images": "bild"}
    info = {"bilder": {"file_name": "rows.json", "columns": columns}, "bilder_test": {"file_name": "more.json"}}
    rows = b'[{"frage": "Welche Farbe?", "antwort": "rot", "bild": "a.png"}]'
    more = b'[{"instruction": "Hello", "output": "Hi"}]'
    files = {"d/rows.json": rows, "d/more.json": more, "d/a.png": picture()}
    imported(client, files | {"d/dataset_info.json": json.dumps(info).encode()})
    assert chats(trained_on(studio)) == [("Welche Farbe?", "rot")]
    assert chats(trained_on(studio, split="eval_dataset")) == [("Hello", "Hi")]


def test_a_webdataset_shard_is_read(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, data in {"0.png": picture(), "0.txt": b"a red field"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    imported(client, {"shard.tar": (tmp_path / "shard.tar").read_bytes()})
    assert chats(trained_on(studio)) == [("Describe this image.", "a red field")]


def test_an_import_that_is_stopped_leaves_what_was_uploaded(client: TestClient, studio: Studio) -> None:
    files = {f"{n}.png": picture(size=(900 + n, 900)) for n in range(40)}
    name = new_dataset(client, files=files)
    client.post(f"/data/{name}/import", data={"columns": ""})
    client.post(f"/data/{name}/stop")
    until("it ends", lambda: client.get(f"/data/{name}/progress").status_code == 204)
    dataset = dataset_of(studio.workspace, name)
    assert not list(dataset.versions_folder.iterdir())
    assert len(list(dataset.files.iterdir())) == 40
    assert "Reading the rows ended before it was done" in client.get(f"/data/{name}").text
