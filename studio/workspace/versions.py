"""The dataset versions that can be trained on: what they are called, their splits, and how many rows each has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.data.datasets import read_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.recipe.load import make_recipe
from studio.errors import StudioError
from studio.workspace.folder import Workspace

INFO = "dataset_info.json"
SUMMARY = "version.json"  # the Data page's, with the rows of each split
TRAIN = "train"
HELD_OUT = ("validation", "test")  # splits that are not trained on, the first one there is validates


@dataclass(frozen=True)
class Version:
    """One version of a dataset. splits: the entries of its dataset_info.json; folder: where that file is."""

    name: str
    number: int
    folder: Path
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        """How a form names it."""
        return f"{self.name}@{self.number}"

    @property
    def training_split(self) -> str:
        return TRAIN if TRAIN in self.splits else self.splits[0]

    @property
    def validation_split(self) -> str | None:
        return next((split for split in HELD_OUT if split in self.splits), None)

    def rows(self, split: str) -> int:
        """How many rows a split has that can be read, 0 if none can."""
        info = self.folder / INFO
        return _count(self.folder, split, info.stat().st_mtime_ns if info.exists() else 0)


def list_versions(workspace: Workspace) -> list[Version]:
    """Every version of every dataset: datasets used last first, their newest version first."""
    found = []
    for name in workspace.names("datasets"):
        folders = [
            path for path in (workspace.folder / "datasets" / name / "versions").glob("*") if path.name.isdigit()
        ]
        for folder in sorted(folders, key=lambda path: -int(path.name)):
            if splits := _splits(folder):
                found.append(Version(name, int(folder.name), folder, splits))
    return found


def find_version(workspace: Workspace, key: str) -> Version:
    """The version that a form names. Raises StudioError (404) if there is none (any more)."""
    for version in list_versions(workspace):
        if version.key == key:
            return version
    raise StudioError("errors.missing", status=404, name=key)


def _splits(folder: Path) -> tuple[str, ...]:
    known = _json(folder / INFO)
    return tuple(sorted(known, key=lambda split: (split != TRAIN, split))) if isinstance(known, dict) else ()


@lru_cache(maxsize=64)
def _count(folder: Path, split: str, changed: int) -> int:
    summary = _json(folder / SUMMARY)
    counted = summary.get("rows") if isinstance(summary, Mapping) else None
    if isinstance(counted, Mapping) and isinstance(counted.get(split), int):
        return int(counted[split])
    recipe = make_recipe({"model_name_or_path": "", "dataset_dir": str(folder), "box_format": "original"})
    try:
        return sum(isinstance(row, Row) for row in read_rows(split, recipe, _NoDigest()))
    except FinetuneError:
        return 0


class _NoDigest:
    """In place of a hash of the data's bytes, which nobody asks for here."""

    def update(self, data: bytes) -> None:
        pass


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
