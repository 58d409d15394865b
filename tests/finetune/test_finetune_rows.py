from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shapes_data import ask, write_dataset

from finetune.errors import FinetuneError
from finetune.recipe import Recipe
from finetune.rows import load_rows

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
        (ask("<image>two?", "red", 0), r"row 2: the text has <image> 2 times, the row has 1 images"),
        (turns(("human", "<image>q"), ("gpt", "a")), r"row 2: the text has <image> 1 times, the row has 0 images"),
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
        ({"formatting": "alpaca"}, "the formatting 'alpaca' is not supported"),
        ({"file_name": "gone.json"}, "gone.json does not exist"),
        ({"file_name": "shapes.txt"}, "must be .json or .jsonl"),
        ({"file_name": None}, "an entry needs a file_name"),
        ({"ranking": True}, "the key ranking is not supported"),
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
