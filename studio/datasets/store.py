"""The datasets of a workspace: their folders, versions, and what a recipe says to train on one."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfiles.folder.atomic_write import write_atomically
from modelfiles.hardware.python_child import module_command
from studio.datasets.index import RowIndex
from studio.errors import StudioError
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace

ABOUT, IMPORT, OUTCOME = "dataset.json", "import.json", "outcome.json"
VERSION, ROWS, DRAFT = "version.json", "rows.sqlite", "draft.sqlite"
BOX_FORMATS = ("original", "resized", "relative")


@dataclass(frozen=True)
class Version:
    """One version of a dataset.

    counts: rows by kind, as RowIndex.counts names them; rows: those that can be trained on, by split.
    imported: the version whose import its rows come from; rows have the same numbers in all versions of one import.
    """

    folder: Path
    number: int
    created_at: float
    note: str
    imported: int
    counts: dict[str, int]
    rows: dict[str, int]

    @property
    def index(self) -> RowIndex:
        return RowIndex(self.folder / ROWS)

    @property
    def trainable(self) -> int:
        """How many rows `lensmith train` reads of it."""
        return self.rows.get("train", 0)


class Dataset:
    """A dataset's folder: `files` (what was uploaded), `versions/N`, a draft of the next version, kept thumbnails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.files = folder / "files"
        self.versions_folder = folder / "versions"
        self.pictures = folder / "pictures"  # those that stood in the data as base64
        self.thumbnails = folder / "thumbnails"
        self.draft_path = folder / DRAFT

    def about(self) -> dict[str, Any]:
        """What was set for the dataset: box_format, model."""
        return read_json(self.folder / ABOUT) or {}

    def set_about(self, **values: Any) -> None:
        with self.lock():
            write_json(self.folder / ABOUT, self.about() | values)

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        if not self.versions_folder.is_dir():
            return []
        numbers = sorted((int(p.name) for p in self.versions_folder.iterdir() if p.name.isdecimal()), reverse=True)
        return [version for number in numbers if (version := self._version(number)) is not None]

    def version(self, number: int | None = None) -> Version:
        """The version of this number, or the newest. Raises StudioError (404)."""
        found = next(iter(self.versions()), None) if number is None else self._version(number)
        if found is None:
            raise StudioError("data.error_no_version", status=404, name=self.name)
        return found

    def _version(self, number: int) -> Version | None:
        folder = self.versions_folder / str(number)
        about = read_json(folder / VERSION)
        return Version(folder, number, **about) if about is not None else None

    def recipe_keys(self, number: int | None = None) -> dict[str, Any]:
        """The recipe's keys for a version: dataset, dataset_dir, and eval_dataset and box_format if it has them."""
        version = self.version(number)
        keys: dict[str, Any] = {"dataset": "train", "dataset_dir": str(version.folder)}
        if version.rows.get("validation"):
            keys["eval_dataset"] = "validation"
        if box_format := self.about().get("box_format"):
            keys["box_format"] = box_format
        return keys

    def wanted(self) -> dict[str, Any]:
        """What the last import was to read, or what a first one reads."""
        return read_json(self.folder / IMPORT) or {"source": "files"}

    def outcome(self) -> dict[str, Any]:
        """How the last import ended: {"state": "done", "failed" or "columns", …}; empty before the first."""
        return read_json(self.folder / OUTCOME) or {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Of two requests that change the dataset, one waits."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def start_import(self, jobs: Jobs, wanted: dict[str, Any]) -> Job:
        """Read the rows as `wanted` says (studio.datasets.importing) in a job.

        Raises StudioError (409) if one is running, or if there are changes that are not saved.
        """
        spec = self._spec("import", "studio.datasets.importing", str(self.folder))
        with self.lock():
            if any(job.active for job in jobs.list("import", dataset=self.name)):
                raise StudioError("errors.already_running", status=409, title=self.name)
            if self.draft_path.exists():
                if RowIndex(self.draft_path).counts()["changed"]:
                    raise StudioError("data.error_unsaved", status=409)
                self.draft_path.unlink()
            write_json(self.folder / IMPORT, wanted)
            (self.folder / OUTCOME).unlink(missing_ok=True)
            return jobs.submit(spec)

    def start_duplicates(self, jobs: Jobs) -> Job:
        """Look for pictures that are (nearly) the same in a job; the groups are in the draft afterwards."""
        return jobs.submit(self._spec("duplicates", "studio.datasets.duplicates", str(self.folder)))

    def _spec(self, kind: str, module: str, *arguments: str) -> JobSpec:
        self.versions_folder.mkdir(exist_ok=True)
        return JobSpec(
            kind=kind,
            title=self.name,
            command=[*module_command(module), *arguments],
            cwd=self.versions_folder,  # nothing in it can be taken for a module of Python or a dataset's name
            about={"dataset": self.name},
            exclusive=f"{kind} {self.name}",
        )


def datasets_of(workspace: Workspace) -> list[Dataset]:
    """All datasets, the newest first."""
    return [Dataset(workspace.folder / "datasets" / name) for name in workspace.names("datasets")]


def dataset_of(workspace: Workspace, name: str) -> Dataset:
    """Raises StudioError (404) if there is none of this name."""
    return Dataset(workspace.existing("datasets", name))


def create_dataset(workspace: Workspace, name: str) -> Dataset:
    """A new dataset without rows. Raises StudioError (409) if there is one of this name."""
    dataset = Dataset(workspace.create("datasets", name))
    try:
        dataset.files.mkdir()
        write_json(dataset.folder / ABOUT, {"created_at": time.time()})
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=dataset.folder, reason=error.strerror) from None
    return dataset


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Raises StudioError (507) if the disk does not take it."""
    try:
        write_atomically(path, json.dumps(values, ensure_ascii=False, indent=1).encode(), durable=False)
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=path, reason=error.strerror) from None
