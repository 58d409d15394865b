"""Rows encoded into a table, in any number of processes: the same chats as one by one, and figures that are theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from finetune.data.tables import processes
from finetune.encoding import encode_rows
from finetune.encoding.skeletons import Skeletons
from finetune.families.registry import family_of
from finetune.model.folder import open_base
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.dataset import encode, load_training_data
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
SPECIAL = ask("<|im_end|>", "no")
TEXTS = ["what?", " spaced ", "", "image", "<tool_call>", "a\nb", "text image user", "</think> x", "é\n\n"]


def rows_of(count: int) -> list[Any]:
    """Chats that differ in shape, texts and images; some cannot be encoded."""
    rows = [ask(f"{TEXTS[n % 9]} {n}", TEXTS[n % 7] or "a", *([n % 8] if n % 3 else [])) for n in range(count)]
    rows[5], rows[20] = SPECIAL, ask("gone", "a", 0) | {"images": ["images/none.png"]}
    return rows


def same(one: Any, other: Any) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("ids", "labelled", "positions"))
    return arrays and (one.images, one.source) == (other.images, other.source)


def test_several_processes_encode_what_one_encodes(
    recipe: MakeRecipe, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FEW_TASKS", 2)
    monkeypatch.setattr(encode_rows, "TASK_ROWS", 11)
    write_dataset(dataset, rows_of(60))
    found = []
    for workers in (1, 2):
        made = recipe(preprocessing_num_workers=workers, bad_rows="skip")
        reader = family_of(open_base(made)).read(open_base(made), made)
        read = encode("shapes", made, reader)
        rows, encoded = read.sound(made, "qwen3_vl")
        assert list(read.wrong) == [5, 20]
        plain = reader.encoder.with_an_empty_bank().encode(list(rows))
        assert all(same(ours, theirs) for ours, theirs in zip(encoded, plain, strict=True))
        assert encoded.lengths.tolist() == [len(row) for row in plain]
        assert encoded.labels.tolist() == [int(row.labelled.sum()) for row in plain]
        assert encoded.media == [row.images for row in plain]
        found.append((reader.bank.paths, read.wrong, encoded.lengths.tolist()))
    assert found[0] == found[1]


def test_training_and_check_leave_broken_rows_out_and_name_them(
    recipe: MakeRecipe, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(dataset, rows_of(30))
    torn = dataset / "images/2.png"
    torn.write_bytes(torn.read_bytes()[:60])
    keys = {"eval_dataset": None, "bad_rows": "skip"}
    data = load_training_data(recipe(**keys), Console(quiet=True))
    left = {row.source for row in data.rows}
    missing = [n for n in range(1, 31) if f"shapes.json, row {n}" not in left]
    assert {6, 21} <= set(missing)
    assert all(n - 1 in (5, 20) or (n - 1) % 8 == 2 for n in missing)
    assert len(data.broken) == len(missing) > 2
    assert check_recipe(recipe(**keys), Report(Console(soft_wrap=True, width=200)), decoded=True)
    shown = capsys.readouterr().out
    assert f"{len(missing)} broken rows are left out" in shown
    assert not check_recipe(recipe(eval_dataset=None), Report(Console(soft_wrap=True, width=200)), decoded=True)
    assert "images/2.png cannot be decoded" in capsys.readouterr().out.replace("\n", "")


TEMPLATES = {
    "trims": "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text | trim }}{% endfor %}",
    "looks": "{% for m in messages %}{% if 'x' in m.content[0].text %}X{% endif %}{{ m.content[0].text }}{% endfor %}",
    "splits": "{% for m in messages %}{{ m.content[0].text.split('</think>')[-1] }}|{% endfor %}",
    "compares": "{% for m in messages %}{{ 'none' if m.content[0].text == 'no' else m.content[0].text }}|{% endfor %}",
    "counts": "{% for m in messages %}{{ m.content[0].text | length }}{{ m.content[0].text }}|{% endfor %}",
    "doubles": "{% for m in messages %}{{ m.content[0].text }}{{ m.content[0].text }}|{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_skeletons_render_what_the_template_renders(template: str, recipe: MakeRecipe, dataset: Path) -> None:
    from jinja2 import Environment

    compiled = Environment().from_string(TEMPLATES[template])

    def render(rows: Any) -> tuple[list[str], list[list[int]]]:
        wholes = [compiled.render(messages=row.messages) for row in rows]
        return wholes, [[len(compiled.render(messages=row.messages[:1]))] for row in rows]

    texts = ["what", "no", "x", "axb", " a ", "t</think>u", "", "longer than the others", "text"]
    write_dataset(dataset, [ask(question or "q", answer or "a") for question in texts for answer in texts])
    from finetune.data.datasets import load_rows

    rows = list(load_rows("shapes", recipe()).rows)
    skeletons = Skeletons(TEMPLATES[template], render)
    for start in range(0, len(rows), 10):
        assert skeletons.rendered(rows[start : start + 10]) == render(rows[start : start + 10])
