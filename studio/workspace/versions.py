"""The dataset versions that can be trained on and evaluated: what they are called, and what is in each.

A version's folder is as the page Data leaves it (studio/datasets/versions.py): dataset_info.json with an entry for each
split, named as the split, and version.json with the counts of their rows. It never changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import StudioError
from studio.workspace.folder import Workspace

INFO, ABOUT, DATASET = "dataset_info.json", "version.json", "dataset.json"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Version:
    """One version of a dataset. folder: recipes' dataset_dir; rows: by split, splits without rows left out.

    box_format: what its boxes are, for recipes; None if they are none or text.
    """

    name: str
    number: int
    folder: Path
    rows: dict[str, int]
    box_format: str | None

    @property
    def key(self) -> str:
        """How a form names it."""
        return f"{self.name}@{self.number}"


def list_versions(workspace: Workspace) -> list[Version]:
    """Every version with rows of every dataset: datasets used last first, their newest version first."""
    found = []
    for name in workspace.names("datasets"):
        dataset = workspace.folder / "datasets" / name
        folders = [path for path in (dataset / "versions").glob("*") if path.name.isdecimal() and path.is_dir()]
        for folder in sorted(folders, key=lambda path: -int(path.name)):
            if rows := _rows(folder):
                box_format = _json(dataset / DATASET).get("box_format")
                found.append(Version(name, int(folder.name), folder, rows, box_format or None))
    return found


def find_version(workspace: Workspace, key: str) -> Version:
    """The version that a form names, or a dataset's newest if it names no version. Raises StudioError (404)."""
    for version in list_versions(workspace):
        if key in (version.key, version.name):
            return version
    raise StudioError("errors.missing", status=404, name=key)


def _rows(folder: Path) -> dict[str, int]:
    rows = _json(folder / ABOUT).get("rows")
    counted = {split: rows.get(split) for split in (TRAIN, VALIDATION)} if isinstance(rows, dict) else {}
    return {split: count for split, count in counted.items() if isinstance(count, int) and count > 0}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
