"""Versions of datasets in a workspace, as the Data page leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.web.render import Studio
from tests.support.finetune.shapes_data import COLOURS, ask, write_dataset
from tests.support.studio.datasets import lines, picture

ROWS, HELD_OUT = 24, 8


def write_version(workspace: Path, name: str = "shapes", number: int = 1) -> Path:
    """A version with training and validation rows; its folder."""
    folder = workspace / "datasets" / name / "versions" / str(number)
    rows = [ask("what color is the shape?", COLOURS[index % 8 // 2], index % 8) for index in range(ROWS)]
    write_dataset(folder, rows, "train")
    write_dataset(folder, rows[:HELD_OUT], "validation")
    about = {"created_at": 0.0, "note": "", "imported": number}
    rows_of = {"train": ROWS, "validation": HELD_OUT}
    (folder / "version.json").write_text(json.dumps(about | {"rows": rows_of}))
    return folder


def shape_files() -> dict[str, bytes]:
    """Files to import, as OpenAI's messages: training and validation rows about squares of a colour."""
    files = {f"images/{colour}.png": picture(colour, (64, 64)) for colour in COLOURS}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>what color is the shape?"},
                {"role": "assistant", "content": colour},
            ],
            "images": [f"images/{colour}.png"],
        }
        for colour in COLOURS
    ]
    return files | {"train.jsonl": lines(*rows * (ROWS // len(rows))), "validation.jsonl": lines(*rows)}


@pytest.fixture
def shapes(studio: Studio) -> str:
    """The key of a dataset version in the workspace."""
    write_version(studio.workspace.folder)
    return "shapes@1"
