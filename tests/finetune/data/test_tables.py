"""Rows in Arrow files: equal to those read at once, in any number of processes; made once, and bounded."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.data import records
from finetune.data.datasets import load_rows, read_datasets
from finetune.data.records import read_records
from finetune.data.tables import cache, processes, read_file
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import ask

MakeRecipe = Callable[..., Recipe]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed_rows(count: int) -> list[Any]:
    """Rows of several kinds, every seventh of them broken."""
    chance = random.Random(0)
    kinds = [
        lambda n: ask(f"what {n}?", "red", n % 8),
        lambda n: ask(f"how? {n} \ud83d é", "yes\n"),
        lambda n: ask("x", "y") | {"tools": json.dumps([{"name": "f", "number": n / 3}])},
    ]
    return [{"messages": 3} if n % 7 == 3 else chance.choice(kinds)(n) for n in range(count)]


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FEW_TASKS", 2)
    monkeypatch.setattr(read_file, "TASK_ROWS", 9)


def test_several_processes_read_what_one_reads(
    recipe: MakeRecipe, dataset: Path, small_tasks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(lines(dataset / "mixed.jsonl", mixed_rows(200)))
    one = [str(row) for row in read_datasets(path, recipe(preprocessing_num_workers=1)).together]
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "other"))
    several = [str(row) for row in read_datasets(path, recipe(preprocessing_num_workers=2)).together]
    assert several == one
    assert sum("row 4:" in row for row in one) == 1, "an error names its row"


def test_a_file_is_read_once_as_long_as_it_stays_the_same(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(dataset / "once.jsonl", [ask(f"q {n}", "a") for n in range(5)])
    first = load_rows(str(path), recipe())

    def refused(*arguments: Any) -> None:
        raise AssertionError("it is read again")

    with monkeypatch.context() as patched:
        patched.setattr(read_file, "read_unparsed", refused)
        assert load_rows(str(path), recipe()).rows == first.rows
    lines(path, [ask(f"q {n}", "b") for n in range(5)])
    assert load_rows(str(path), recipe()).rows[0].messages[-1]["content"] == [{"type": "text", "text": "b"}]


def test_the_cache_keeps_to_its_size_and_is_rid_of_what_killed_processes_left(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    folder = dataset / "cache/lensmith/rows"
    for number in range(4):
        load_rows(str(lines(dataset / f"{number}.jsonl", [ask(f"q {number}", "a")])), recipe())
    (folder / "killed.partial").write_bytes(b"half")
    for number, file in enumerate(sorted(folder.glob("*.arrow"))):
        os.utime(file, (number, number))
    oldest = sorted(folder.glob("*.arrow"))[:3]
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * oldest[0].stat().st_size + 100)
    load_rows(str(lines(dataset / "new.jsonl", [ask("q new", "a")])), recipe())
    assert not any(file.exists() for file in oldest)
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_was_cut_short_is_made_again(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    path = str(lines(dataset / "cut.jsonl", [ask("q", "a")]))
    first = list(load_rows(path, recipe()).rows)
    (file,) = (dataset / "cache/lensmith/rows").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert list(load_rows(path, recipe()).rows) == first


def _load(path: str, made: Recipe, answers: Any) -> None:
    answers.put([str(row) for row in load_rows(path, made).rows])


def test_processes_that_read_the_same_file_at_once_agree(recipe: MakeRecipe, dataset: Path) -> None:
    path = str(lines(dataset / "same.jsonl", [ask(f"q {n}", "a") for n in range(500)]))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    readers = [context.Process(target=_load, args=(path, recipe(), answers)) for _ in range(3)]
    for reader in readers:
        reader.start()
    found = [answers.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join()
    assert found[0] == found[1] == found[2] == [str(row) for row in load_rows(path, recipe()).rows]


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "file"))
    assert len(load_rows(str(lines(dataset / "rows.jsonl", [ask("q", "a")])), recipe()).rows) == 1


def test_broken_rows_of_each_kind_are_left_out_where_the_recipe_says_so(recipe: MakeRecipe, dataset: Path) -> None:
    path = dataset / "bad.jsonl"
    lines(path, [ask("a", "b"), {"messages": 3}, ask("c", "d")])
    path.write_text(path.read_text() + "{broken\n" + json.dumps(ask("e", "f")) + "\n")
    with pytest.raises(FinetuneError, match=r"bad.jsonl, row 2"):
        load_rows(str(path), recipe())
    found = load_rows(str(path), recipe(bad_rows="skip"))
    assert [row.source for row in found.rows] == [f"bad.jsonl, row {number}" for number in (1, 3, 5)]
    assert [message.partition(":")[0].rpartition("/")[2] for message in found.broken] == [
        "bad.jsonl, row 2",
        "bad.jsonl, line 4",
    ]


leaves = st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=8)


@example(rows=[1e22, -1.5], indent=None, piece=2)  # a number whose beginning is a number
@given(rows=st.lists(values, max_size=6), indent=st.sampled_from([None, 1]), piece=st.integers(1, 40))
def test_a_json_list_is_read_in_pieces_of_any_size(
    rows: list[Any], indent: int | None, piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lists") / "rows.json"
    path.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(records, "PIECE", piece)
        assert list(read_records(path)) == rows


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", "[1,]", "[,1]", "[1] 2", '["a]', "[1, {]"])
def test_a_broken_json_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(FinetuneError, match="cannot be read as JSON"):
        list(read_records(tmp_path / "rows.json"))
