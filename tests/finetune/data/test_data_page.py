"""Every example of docs/data.md is read as the page says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]
PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w+) (\S+)\n([\s\S]*?)```\n((?:\n?Becomes .*\n)*)")
EXAMPLES = {name: (kind, text, expected) for kind, name, text, expected in BLOCK.findall(PAGE)}
NAMES = {"photos/train/metadata.jsonl": "photos", "mine.json": "mine"}


def transcript(row: Row) -> str:
    turns = []
    for number, message in enumerate(row.messages):
        text = "".join(part.get("text", f"<{part['type']}>") for part in message["content"])
        label = " (no label)" if number in row.unlabelled else ""
        turns.append(f"{message['role']}{label}: `{text}`")
    return "Becomes " + " ".join(turns).replace("\n", "\\n")


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "dataset_info.json"])
def test_an_example_is_read_as_the_page_says(
    recipe: MakeRecipe, dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset / "cache"))
    kind, text, expected = EXAMPLES[name]
    (dataset / name).parent.mkdir(parents=True, exist_ok=True)
    (dataset / name).parent.joinpath("0.png").write_bytes((dataset / "images/0.png").read_bytes())
    if kind == "bash":
        subprocess.run(["bash", "-ec", text], cwd=dataset, check=True)
    else:
        (dataset / name).write_text(text, encoding="utf-8")
    (dataset / "dataset_info.json").write_text(EXAMPLES["dataset_info.json"][1])
    bare = name != "mine.json"
    named = str(dataset / NAMES.get(name, name)) if bare else "mine"
    lines = [line for line in expected.splitlines() if line]
    rows = load_rows(named, recipe(box_format="original", max_samples=len(lines))).rows
    assert [transcript(row) for row in rows] == lines
    assert all(Path(image).is_file() for row in rows for image in row.images)
    images = sum(part["type"] == "image" for row in rows for message in row.messages for part in message["content"])
    assert images == sum(len(row.images) for row in rows)


def test_the_page_has_an_example_of_every_layout() -> None:
    assert len(EXAMPLES) > 14
    assert all(lines for name, (_, _, lines) in EXAMPLES.items() if name != "dataset_info.json")
