from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.media.image_files import image_size
from finetune.media.pixel_limits import PixelLimits
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


def test_a_row_becomes_a_chat_with_image_parts(recipe: MakeRecipe, dataset: Path) -> None:
    rows = load_rows("shapes", recipe()).rows
    assert len(rows) == 24
    assert rows[0].messages == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    assert rows[0].images == [dataset / "images/0.png"]
    assert rows[1].source == "shapes.json, row 2"


def test_openai_tags_and_jsonl_and_max_samples(recipe: MakeRecipe, dataset: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(5)
    ]
    (dataset / "chat.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {
        "chat": {"file_name": "chat.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    }
    (dataset / "dataset_info.json").write_text(json.dumps(info))
    rows = load_rows("chat", recipe(max_samples=3)).rows
    assert [row.messages[0]["content"][0]["text"] for row in rows] == ["q0", "q1", "q2"]


def test_the_digest_follows_the_data(recipe: MakeRecipe, dataset: Path) -> None:
    before = load_rows("shapes", recipe()).digest
    assert load_rows("shapes", recipe()).digest == before
    write_dataset(dataset, [ask("what color?", "red", 0)])
    assert load_rows("shapes", recipe()).digest != before


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ask("<image>two?", "red", 0), r"row 2: the text has <image> 2 times, the row has 1 image"),
        (turns(("human", "<image>q"), ("gpt", "a")), r"row 2: the text has <image> 1 time, the row has 0 images"),
        (turns(("human", "q"), ("gpt", "<image>")), "row 2, turn 2: an answer cannot hold <image>"),
        (turns(("human", "q")), "row 2: the last turn must be the assistant's"),
        (turns(("human", "q"), ("human", "r"), ("gpt", "a")), "turn 2 is user's but should be the assistant's"),
        (turns(("gpt", "a")), "turn 1 is assistant's but should be the user's"),
        (turns(("human", "q"), ("system", "s"), ("gpt", "a")), "the system turn must come first"),
        (turns(("system", "s")), "the last turn must be the assistant's"),
        (turns(("human", "q"), ("robot", "a")), "'from' is 'robot'; use human, gpt"),
        (turns(("human", "q"), ("gpt", None)), "the content must be a text, not NoneType"),  # type: ignore[arg-type]
        (turns(("human", "q"), ("function_call", "no json")), "a call must be"),
        ({"conversations": []}, "must be a list of turns"),
        ({"conversations": ["hi"]}, "turn 1: a turn must be an object"),
        ({"conversations": turns(("human", "q"), ("gpt", "a"))["conversations"], "images": [1]}, "a list of paths"),
        ({"conversations": turns(("human", "q"), ("gpt", "a"))["conversations"], "tools": "{"}, "'tools' is not JSON"),
        ("text", "row 2: a row must be an object, not str"),
        (17, "row 2: a row must be an object, not int"),
    ],
)
def test_a_broken_row_is_named(recipe: MakeRecipe, dataset: Path, row: Any, complaint: str) -> None:
    write_dataset(dataset, [ask("what color?", "red", 0), row])
    with pytest.raises(FinetuneError, match=f"shapes.json, .*{complaint}") as caught:
        load_rows("shapes", recipe())
    assert "row 2" in caught.value.message


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"formatting": "parrot"}, "the formatting 'parrot' is not supported; use alpaca, sharegpt, openai, caption"),
        ({"file_name": "gone.json"}, "gone.json does not exist"),
        ({"file_name": "shapes.txt"}, "must be .json, .jsonl, .csv"),
        ({"file_name": None}, "file_name, hf_hub_url, ms_hub_url and split are texts"),
        ({"file_name": ""}, "an entry needs a file_name"),
        ({"ranking": True}, "the key ranking is for preference training: set stage: dpo"),
        ({"columns": {"imagess": "x"}}, "columns may have"),
    ],
)
def test_a_broken_entry_is_named(recipe: MakeRecipe, dataset: Path, entry: dict[str, Any], complaint: str) -> None:
    write_dataset(dataset, [ask("what color?", "red", 0)], **entry)
    with pytest.raises(FinetuneError, match=complaint):
        load_rows("shapes", recipe())


def test_an_unknown_dataset_lists_the_known(recipe: MakeRecipe) -> None:
    with pytest.raises(FinetuneError, match="no dataset 'cats'; it has shapes"):
        load_rows("cats", recipe())


def test_a_missing_dataset_info_is_named(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"dataset_info\.json does not exist"):
        load_rows("shapes", recipe(dataset_dir=str(tmp_path)))


def test_broken_json_names_file_and_line(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [], file_name="bad.jsonl")
    (dataset / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(FinetuneError, match=r"row 1: 'conversations'"):
        load_rows("shapes", recipe())
    (dataset / "bad.jsonl").write_text(json.dumps(ask("q?", "a", 0)) + '\n{"a": \n')
    with pytest.raises(FinetuneError, match=r"bad.jsonl, line 2: not JSON"):
        load_rows("shapes", recipe())


ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]}
ANSWERED = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}


def only_row(recipe: Recipe, dataset: Path, record: Any, **entry: Any) -> Row:
    write_dataset(dataset, [record], **entry)
    (row,) = load_rows("shapes", recipe).rows
    return row


def test_alpaca_rows(recipe: MakeRecipe, dataset: Path) -> None:
    record = {
        "instruction": "<image>what color", "input": "is the shape?", "output": "red", "system": "Be brief.",
        "history": [["hello", "hi"]], "images": ["images/0.png"],
    }  # fmt: skip
    row = only_row(recipe(), dataset, record, formatting="alpaca")
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.messages[3]["content"] == [{"type": "image"}, {"type": "text", "text": "what color\nis the shape?"}]
    assert row.messages[4] == ANSWERED


def test_alpaca_is_what_an_entry_without_formatting_means(recipe: MakeRecipe, dataset: Path) -> None:
    (dataset / "a.json").write_text(json.dumps([{"q": "hello", "a": "hi"}]))
    info = {"a": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}}}
    (dataset / "dataset_info.json").write_text(json.dumps(info))
    assert load_rows("a", recipe()).rows[0].messages[0]["content"] == [{"type": "text", "text": "hello"}]


def openai_row(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "red"}]}


def test_openai_messages_with_parts(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [])
    pixels = base64.b64encode((dataset / "images/0.png").read_bytes()).decode()
    question = {"type": "text", "text": "what color is the shape?"}
    for url in ("images/0.png", f"data:image/png;base64,{pixels}"):
        record = openai_row({"type": "image_url", "image_url": {"url": url}}, question)
        row = only_row(recipe(), dataset, record, formatting="openai")
        assert row.messages == [ASKED, ANSWERED]
        assert image_size(row.images[0]) == (64, 64)
    row = only_row(recipe(), dataset, openai_row({"type": "image", "image": "images/0.png"}), formatting="openai")
    assert row.images == [dataset / "images/0.png"]


def test_openai_tool_calls_are_sharegpts_calls(recipe: MakeRecipe, dataset: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    theirs = {"messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]}  # fmt: skip
    ours = turns(
        ("human", "weather?"), ("function_call", json.dumps(call)), ("observation", "rain"), ("gpt", "It rains.")
    )
    one = only_row(recipe(), dataset, theirs, formatting="openai")
    assert one.messages == only_row(recipe(), dataset, ours).messages


def test_a_folder_of_captions(recipe: MakeRecipe, dataset: Path) -> None:
    lines = [{"image": "images/0.png", "text": "a red one"}, {"file_name": "images/1.png", "text": "a red one"}]
    (dataset / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_rows(str(dataset), recipe()).rows
    assert [row.images for row in rows] == [[dataset / "images/0.png"], [dataset / "images/1.png"]]
    assert rows[0].messages[0]["content"][0] == {"type": "image"}
    assert rows[0].messages[1]["content"] == [{"type": "text", "text": "a red one"}]


@pytest.mark.parametrize("name", ["bare.json", "bare.jsonl", "bare.csv"])
def test_a_bare_file_needs_no_dataset_info(recipe: MakeRecipe, dataset: Path, name: str) -> None:
    record = {"instruction": "<image>what color is the shape?", "output": "red", "images": "images/0.png"}
    if name.endswith("csv"):
        with (dataset / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(record))
            writer.writeheader()
            writer.writerow(record | {"images": '["images/0.png"]'})
            writer.writerow(record)
    else:
        text = json.dumps([record, record]) if name == "bare.json" else f"{json.dumps(record)}\n{json.dumps(record)}"
        (dataset / name).write_text(text)
    rows = load_rows(str(dataset / name), recipe()).rows
    assert [row.messages for row in rows] == [[ASKED, ANSWERED]] * 2
    assert rows[0].images == rows[1].images == [dataset / "images/0.png"]


def test_several_datasets_follow_each_other(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("what?", "blue", 1)], name="more")
    rows = load_rows("shapes, more", recipe(max_samples=2)).rows
    assert [row.source for row in rows] == ["shapes.json, row 1", "shapes.json, row 2", "more.json, row 1"]


@pytest.mark.parametrize(
    ("formatting", "record", "complaint"),
    [
        ("alpaca", {"output": "a"}, "'instruction' must be a text"),
        ("alpaca", {"instruction": "q"}, "turn 2: the content must be a text, not NoneType"),
        ("alpaca", {"instruction": "q", "output": "a", "history": ["x"]}, r"a list of \[question, answer\]"),
        ("openai", openai_row({"type": "video"}), "turn 1: a part must be a text, an image_url or an image"),
        ("openai", openai_row({"type": "text", "text": "<image>"}), "turn 1: a text part cannot hold <image>"),
        (
            "openai",
            openai_row({"type": "image", "image": "https://x/y.png"}),
            "is a URL; set allow_image_urls: true, or download it",
        ),
        ("openai", openai_row({"type": "image", "image": "a.png"}) | {"images": ["b.png"]}, "are given both in"),
        ("caption", {"image": "images/0.png"}, "a caption needs `image`"),
    ],
)
def test_broken_rows_of_other_formats_are_named(
    recipe: MakeRecipe, dataset: Path, formatting: str, record: Any, complaint: str
) -> None:
    with pytest.raises(FinetuneError, match=f"shapes.json, row 1.*{complaint}"):
        only_row(recipe(), dataset, record, formatting=formatting)


@pytest.mark.parametrize("uri", ["data:image/png;base64,%%%", "data:image/png,raw", "data:image/png;base64,aGVsbG8="])
def test_a_broken_data_uri_is_named_briefly(uri: str) -> None:
    limits = PixelLimits(16, 2, 4096, 65536)
    with pytest.raises(FinetuneError, match=r"row 1: the image data:image/png.{0,30}: ") as caught:
        ImageBank(limits).add(uri + "A" * 1000, "row 1")
    assert len(caught.value.message) < 200


def test_a_file_of_no_known_format_is_named(recipe: MakeRecipe, dataset: Path) -> None:
    (dataset / "odd.json").write_text('[{"x": 1}]')
    with pytest.raises(FinetuneError, match=r"odd\.json: cannot tell its format"):
        load_rows(str(dataset / "odd.json"), recipe())
    with pytest.raises(FinetuneError, match=r"has no metadata\.jsonl and no data file of the split 'train'"):
        load_rows(str(dataset / "images"), recipe())
