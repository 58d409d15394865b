"""Files as tools and people leave them: byte order marks, other separators, folders of parts, shards."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.media.image_files import image_size
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]


def texts(row: Row) -> list[str]:
    return ["".join(part.get("text", f"<{part['type']}>") for part in message["content"]) for message in row.messages]


def read(recipe: Recipe, path: Path, data: str | bytes) -> list[Row]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(load_rows(str(path), recipe).rows)


CHAT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.json", "\ufeff" + json.dumps([CHAT])),
        ("bom.jsonl", "\ufeff" + json.dumps(CHAT)),
        ("lines.json", json.dumps(CHAT) + "\n" + json.dumps(CHAT)),
        ("comma.csv", "\ufeffprompt,response\na,b\n"),
        ("semicolon.csv", 'prompt;response\n"a";b\n'),
        ("tab.tsv", "prompt\tresponse\na\tb\n"),
        ("pretty.json", json.dumps([CHAT], indent=2)),
        ("roles.json", json.dumps([{"conversations": [{"role": "user", "content": "a"},
                                                      {"role": "assistant", "content": "b"}]}])),
        ("from.json", json.dumps([{"messages": CHAT["conversations"]}])),
    ],
)  # fmt: skip
def test_a_file_is_read_whoever_wrote_it(recipe: MakeRecipe, dataset: Path, name: str, text: str) -> None:
    assert texts(read(recipe(), dataset / name, text)[0]) == ["a", "b"]


def test_a_csv_field_may_hold_an_image(recipe: MakeRecipe, dataset: Path) -> None:
    data = base64.b64encode((dataset / "images/0.png").read_bytes() + bytes(150_000)).decode()
    table = io.StringIO()
    csv.writer(table).writerows([["image", "text"], [data, "bare"], [f"data:image/png;base64,{data}", "URI"]])
    rows = read(recipe(), dataset / "long.csv", table.getvalue())
    assert [image_size(row.images[0]) for row in rows] == [(64, 64)] * 2


def test_fields_beyond_the_first_lines_names_are_an_error(recipe: MakeRecipe, dataset: Path) -> None:
    with pytest.raises(FinetuneError, match=r"more\.csv, line 2: 1 field more than the first line names"):
        read(recipe(), dataset / "more.csv", "image,text\na.png,b, c\n")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_an_image_folder_is_read_from_its_root(recipe: MakeRecipe, dataset: Path, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    for split, text in (("train", "a"), ("test", "b")):
        for part in ("one", "two"):
            folder = dataset / "photos" / split / part
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes((dataset / "images/0.png").read_bytes())
            record = {"file_name": "0.png", "text": text + part}
            if name.endswith("jsonl"):
                (folder / name).write_text(json.dumps(record))
            elif name.endswith("csv"):
                (folder / name).write_text("file_name,text\n" + ",".join(record.values()))
            else:
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), folder / name)
    rows = load_rows(str(dataset / "photos"), recipe()).rows
    assert [texts(row)[1] for row in rows] == ["aone", "atwo"]
    assert all(Path(row.images[0]).is_file() for row in rows)


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_shard_of_webdataset(recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    pixels = (dataset / "images/0.png").read_bytes()
    chat = json.dumps(CHAT | {"image": "elsewhere.png"}).encode()
    path = shard(dataset / "a.tar", {"x/0.json": chat, "x/0.png": pixels, "x/0.cls": b"3", "x/1.0.png": pixels,
                                     "x/1.1.png": pixels, "x/1.json": chat.replace(b'"image"', b'"i"')})  # fmt: skip
    data = load_rows(str(path), recipe())
    assert [texts(row)[0] for row in data.rows] == ["<image>a", "<image><image>a"]
    assert {image_size(image) for row in data.rows for image in row.images} == {(64, 64)}
    assert data.notes == ("a.tar: not used: cls, i",)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"0.json": b"{"}, r"0\.json: not json"),
        ({"0.json": b"[1]"}, r"0\.json: not json"),
        ({"0.txt": b"\xff"}, r"0\.txt: not txt"),
    ],
)
def test_a_broken_shard_is_named(
    recipe: MakeRecipe, dataset: Path, files: dict[str, bytes], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    with pytest.raises(FinetuneError, match=rf"a\.tar, {complaint}"):
        load_rows(str(shard(dataset / "a.tar", files)), recipe())
    with pytest.raises(FinetuneError, match="not a readable tar file"):
        read(recipe(), dataset / "b.tar", b"no tar")


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"frage": "a?", "bild": "x.png", "antwort": "b"},
         'it has frage, bild, antwort; in dataset_info.json this may fit: '
         '"columns": {"prompt": "frage", "response": "antwort", "images": "bild"}.'),
        ({"chat": CHAT["conversations"]}, '"columns": {"messages": "chat"}.'),
        ({"x": 1}, 'it has x; name its fields in dataset_info.json'),
    ],
)  # fmt: skip
def test_a_layout_that_is_not_known_gets_the_line_that_would_fit(
    recipe: MakeRecipe, dataset: Path, record: Any, hint: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        read(recipe(), dataset / "odd.json", json.dumps([record]))
    assert "odd.json: cannot tell its format" in caught.value.message
    assert hint in caught.value.message


def test_a_json_file_that_is_no_list_names_its_keys(recipe: MakeRecipe, dataset: Path) -> None:
    with pytest.raises(FinetuneError, match="a JSON list of rows; it holds one dict with the keys info, img"):
        read(recipe(), dataset / "coco.json", json.dumps({"info": {}, "img": []}, indent=1))


def answers(recipe: Recipe, dataset: Path, **entry: Any) -> list[str]:
    write_dataset(dataset, [ask("q", str(n), 0) for n in range(5)], **entry)
    return [texts(row)[1] for row in load_rows("shapes", recipe).rows]


def test_an_entry_may_draw_a_number_of_rows(recipe: MakeRecipe, dataset: Path) -> None:
    few, many = answers(recipe(), dataset, num_samples=3), answers(recipe(), dataset, num_samples=8)
    assert len(set(few)) == 3
    assert few == answers(recipe(), dataset, num_samples=3)
    assert few != answers(recipe(seed=1), dataset, num_samples=3)
    assert Counter(many).keys() == set("01234")
    assert len(many) == 8
    assert len(answers(recipe(max_samples=2), dataset, num_samples=3)) == 2
    with pytest.raises(FinetuneError, match="num_samples must be a number of rows, not 'all'"):
        answers(recipe(), dataset, num_samples="all")


def test_keys_of_an_entry_that_ask_for_nothing_are_accepted(recipe: MakeRecipe, dataset: Path) -> None:
    assert answers(recipe(), dataset, ranking=False, subset=None, script_url=None, num_samples=None) == list("01234")


def test_a_subset_is_found_in_the_card_or_as_a_folder(recipe: MakeRecipe, dataset: Path) -> None:
    for part in ("cats/train", "dogs/train", "dogs/test"):
        (dataset / "set" / part).parent.mkdir(parents=True, exist_ok=True)
        (dataset / "set" / f"{part}.json").write_text(json.dumps([ask("q", part, 0)]))
    entry = {"s": {"file_name": "set", "formatting": "sharegpt", "subset": "dogs"}}
    (dataset / "dataset_info.json").write_text(json.dumps(entry))
    assert [texts(row)[1] for row in load_rows("s", recipe()).rows] == ["dogs/train"]
    card = "---\nconfigs:\n- config_name: dogs\n  data_files:\n  - split: train\n    path: cats/train*\n---\n"
    (dataset / "set/README.md").write_text(card)
    assert [texts(row)[1] for row in load_rows("s", recipe()).rows] == ["cats/train"]
    entry["s"]["subset"] = "birds"
    (dataset / "dataset_info.json").write_text(json.dumps(entry))
    with pytest.raises(FinetuneError, match="has no subset 'birds'"):
        load_rows("s", recipe())


def test_images_without_a_mark_stand_first(recipe: MakeRecipe, dataset: Path) -> None:
    record = CHAT | {"image": "images/0.png"}
    (row,) = read(recipe(), dataset / "llava.json", json.dumps([record]))
    assert texts(row) == ["<image>a", "b"]
    with pytest.raises(FinetuneError, match="the text has <image> 1 time, the row has 2 images"):
        read(recipe(), dataset / "two.json", json.dumps([ask("q", "a", 0) | {"images": ["images/0.png"] * 2}]))
