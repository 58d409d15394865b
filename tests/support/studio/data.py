"""Versions of datasets in a workspace, as the Data page leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.web.render import Studio
from tests.support.finetune.shapes_data import COLOURS, ask, write_dataset

ROWS = 24


def write_version(workspace: Path, name: str = "shapes", number: int = 1) -> Path:
    """A version with a training and a validation split; its folder."""
    folder = workspace / "datasets" / name / "versions" / str(number)
    rows = [ask("what color is the shape?", COLOURS[index % 8 // 2], index % 8) for index in range(ROWS)]
    write_dataset(folder, rows, "train")
    return write_dataset(folder, rows[:8], "validation")


@pytest.fixture
def shapes(studio: Studio) -> str:
    """The key of a dataset version in the workspace."""
    write_version(studio.workspace.folder)
    return "shapes@1"
