"""The job that makes a version of what was uploaded or named: python -m studio.datasets.importing DATASET_FOLDER

What to do is in the folder's import.json: {"source": "files", "path" or "hub", "value": the path or id, "question":
what to ask where the data has no question, "columns": the mapping, or "ask"}. How it ended goes to outcome.json.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NoReturn

from finetune.data.datasets import read_rows
from finetune.data.formats import CAPTION_PROMPT, Row
from finetune.data.hub import download
from finetune.data.image_cache import cached_path
from finetune.data.pictures.folder import PICTURES, find_pictures
from finetune.data.records import read_records
from finetune.data.sources import data_files, find_source
from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import new_folder
from studio.datasets import columns, finding
from studio.datasets.archives import is_archive, unpack
from studio.datasets.finding import Part, common_tail, data_root, parts_of, picture_records
from studio.datasets.index import IndexedRow, RowIndex
from studio.datasets.records import line_at, raw_record, to_record, with_files
from studio.datasets.store import IMPORT, OUTCOME, ROWS, Dataset, read_json, write_json
from studio.datasets.thumbnails import Picture, inspect_picture
from studio.datasets.versions import disk_sentences, next_number, problem_of, tokens_of, write_version
from studio.errors import StudioError
from studio.jobs.progress import Progress

BATCH = 256  # rows written at once
PLACE = re.compile(r"^(.+?, (?:row|line) (\d+))")  # how a problem with a row begins
MAX_RAW = 20_000  # characters kept of a record that cannot be read


class NoDigest:
    """In place of a hash of the data's bytes, which nobody asks for here."""

    def update(self, data: bytes) -> None:
        pass


class Import:
    """One run of the job."""

    def __init__(self, dataset: Dataset, wanted: dict[str, Any], progress: Progress) -> None:
        self.dataset, self.wanted, self.progress = dataset, wanted, progress
        self.number = next_number(dataset)
        self.target = dataset.versions_folder / str(self.number)
        self.root = dataset.files
        self.known: dict[Path, Picture] = {}
        self.by_name: dict[str, list[Path]] | None = None

    def run(self) -> dict[str, Any]:
        """Write the version. Returns the outcome: done, or that columns are to be mapped first. Raises StudioError,
        FinetuneError."""
        self.root = self._root()
        with disk_sentences(self.dataset.name), new_folder(self.target) as folder:
            parts = list(self._parts(folder))
            unknown = next((part for part in parts if part.file and self._asks_for_columns(part.file)), None)
            if unknown is not None and unknown.file is not None:
                raise AskForColumns(unknown.file, columns.examples_of(unknown.file))
            index = RowIndex.create(folder / ROWS)
            self._write_rows(index, parts)
            if not index.counts()["all"]:
                raise StudioError("data.error_no_rows", path=self._root_name())
            self.progress.say("save")
            for scratch in folder.glob("layout-*.jsonl"):
                scratch.unlink()
            write_version(self.dataset, folder, "", None)
        return {"state": "done", "version": self.number}

    def _root(self) -> Path:
        """The folder or file to read. Raises StudioError and FinetuneError if it is not there."""
        source, value = self.wanted["source"], self.wanted.get("value", "")
        if source == "hub":
            self.progress.say("download")
            return download(value, "dataset")
        if source == "path":
            path = Path(value).expanduser()
            if not path.exists():
                raise StudioError("data.error_no_path", path=value)
            return path if path.is_file() else data_root(path)
        archives = sorted(p for p in self.dataset.files.rglob("*") if p.is_file() and is_archive(p.name))
        for archive in archives:
            self.progress.say("unpack")
            target = self._folder_for(archive)
            unpack(archive, target, lambda files: self.progress.say("unpack", files))
            archive.unlink()
        if not any(path.is_file() for path in self.dataset.files.rglob("*")):
            raise StudioError("data.error_nothing_uploaded")
        return data_root(self.dataset.files)

    def _folder_for(self, archive: Path) -> Path:
        """Where an archive is unpacked: in place of an earlier one of its name, but of nothing else that is there."""
        unpacked = self.dataset.about().get("unpacked", [])
        stem = archive.name.partition(".")[0] or "archive"
        for name in (stem if n == 1 else f"{stem}-{n}" for n in count(1)):
            target = archive.parent / name
            if not target.exists() or name in unpacked:
                self.dataset.set_about(unpacked=[*unpacked, name])
                return target
        raise AssertionError

    def _root_name(self) -> str:
        """What messages call the folder: an upload's own name is of no use to anybody."""
        return self.dataset.name if self.wanted["source"] == "files" else str(self.root)

    def _parts(self, folder: Path) -> Iterator[Part]:
        """What finetune is to read; files whose columns were mapped, and folders of pictures, in a layout it knows."""
        mapping = self.wanted.get("columns")
        if self.root.is_dir() and not data_files(self.root):
            pictures = find_pictures(self.root)
            if pictures is None:
                raise StudioError("data.error_no_rows", path=self._root_name())
            question = self.wanted.get("question") or pictures.question
            for split in (finding.TRAIN, finding.VALIDATION):
                yield self._written(folder, split, picture_records(pictures, split, question), self.root)
            return
        for part in parts_of(self.root):
            if isinstance(mapping, dict) and part.file is not None:
                question = self.wanted.get("question") or CAPTION_PROMPT
                records = columns.mapped_records(part.file, mapping, question)
                yield self._written(folder, part.split, records, part.file.parent)
            else:
                yield part

    def _written(self, folder: Path, split: str, records: Iterator[Any], media: Path) -> Part:
        """The records in a file that is there while the rows are read."""
        file = folder / f"layout-{split}-{len(list(folder.iterdir()))}.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for record in records:
                out.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        return Part(str(file), finding.reading_recipe(folder, media), split, None)

    def _asks_for_columns(self, file: Path) -> bool:
        return self.wanted.get("columns") == "ask" or not columns.is_known(file)

    def _write_rows(self, index: RowIndex, parts: list[Part]) -> None:
        rows = self._rows(parts)
        number = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while batch := list(islice(rows, BATCH)):
                fresh = {p for _, row, _ in batch if isinstance(row, Row) for p in _paths(row)} - self.known.keys()
                looked = pool.map(lambda path: (path, inspect_picture(path, self.dataset.thumbnails)), fresh)
                pictures = dict(looked)
                self.known |= pictures
                indexed = [self._indexed(number + n, *found) for n, found in enumerate(batch, 1)]
                index.add(indexed)
                index.add_pictures(
                    (self._name(path), *(picture.size or (None, None)), picture.problem)
                    for path, picture in pictures.items()
                )
                number += len(batch)
                self.progress.say("rows", number)

    def _rows(self, parts: list[Part]) -> Iterator[tuple[Part, Row | FinetuneError, Any]]:
        """(part, row or what is wrong, the record as it was if it cannot be read)."""
        for part in parts:
            broken: dict[str, FinetuneError] = {}
            for row in read_rows(part.name, part.recipe, NoDigest(), []):
                if isinstance(row, FinetuneError):
                    place = PLACE.match(row.message)
                    if place is None:
                        raise row  # it is about the whole file
                    broken[place[1]] = row
                    continue
                try:
                    yield part, with_files(self._located(row), self.dataset.pictures, self._allowed), None
                except FinetuneError as error:
                    broken[row.source] = error
            if broken:
                yield from ((part, error, record) for error, record in self._raw(part, broken))

    def _raw(self, part: Part, broken: dict[str, FinetuneError]) -> Iterator[tuple[FinetuneError, Any]]:
        """The broken rows with their records: read a second time, as a row that is broken has none."""
        for file in find_source(part.name, part.recipe).files:
            media = os.path.relpath(file.media, self.target)
            for line, record in enumerate(read_records(file.path, file.split), 1):
                if isinstance(record, FinetuneError):  # not even a record; its text begins with the file's path
                    message = record.message.replace(str(file.path), file.path.name, 1)
                    place = PLACE.match(message)
                    text = line_at(file.path, int(place[2])) if place else ""
                    yield FinetuneError(message), raw_record(text[:MAX_RAW], media)
                elif (error := broken.get(f"{file.path.name}, row {line}")) is not None:
                    text = json.dumps(record, ensure_ascii=False, default=str)
                    yield error, raw_record(json.loads(text) if len(text) <= MAX_RAW else text[:MAX_RAW], media)

    def _indexed(self, number: int, part: Part, row: Row | FinetuneError, raw: Any) -> IndexedRow:
        if isinstance(row, FinetuneError):
            match = PLACE.match(row.message)
            place = match[1] if match else part.name
            source = "" if place.startswith("layout-") else place.rpartition(", ")[0]
            problem = row.message.removeprefix(f"{place}: " if ", row " in place else "")
            return IndexedRow(number, part.split, source, place, raw, problem)
        pictures = {path: self.known[path] for path in _paths(row)}
        wrong = next((picture.problem for picture in pictures.values() if picture.problem), None) or problem_of(row)
        sizes: dict[Path | str, tuple[int, int]] = {path: picture.size or (1, 1) for path, picture in pictures.items()}
        source, place = row.source.rpartition(", row ")[0], row.source
        if place.startswith("layout-") and row.images:  # our own file; a person knows the picture
            place = os.path.relpath(row.images[0], self.root if self.root.is_dir() else self.root.parent)
            source = os.path.dirname(place)
        record = to_record(row, self.target, self.dataset.folder)
        return IndexedRow(number, part.split, source, place, record, wrong, tokens_of(row, sizes))

    def _name(self, path: Path) -> str:
        """A picture as records name it."""
        absolute = os.path.abspath(path)
        inside = Path(absolute).is_relative_to(self.dataset.folder)
        return os.path.relpath(absolute, self.target) if inside else absolute

    def _allowed(self, path: Path) -> bool:
        """Rows of an upload or a hub may name pictures that came with them; those of a path here, any."""
        absolute = Path(os.path.abspath(path))
        folders = (self.root, self.dataset.pictures, self.dataset.files, cached_path("x").parent)
        return self.wanted["source"] == "path" or any(absolute.is_relative_to(folder) for folder in folders)

    def _located(self, row: Row) -> Row:
        """Pictures that are not where the row says are looked for by their name: people move them."""
        if all(not isinstance(image, Path) or image.exists() for image in row.images):
            return row
        if self.by_name is None:
            self.by_name = {}
            root = self.root if self.root.is_dir() else self.root.parent
            for path in root.rglob("*"):
                if path.suffix.lower() in PICTURES:
                    self.by_name.setdefault(path.name, []).append(path)
        return replace(row, images=[self._locate(image) for image in row.images])

    def _locate(self, image: Path | str) -> Path | str:
        if not isinstance(image, Path) or image.exists():
            return image
        assert self.by_name is not None
        found = self.by_name.get(image.name.replace("\\", "/").rpartition("/")[2], [])
        alike = sorted(found, key=lambda path: common_tail(path, image), reverse=True)
        if len(alike) > 1 and common_tail(alike[0], image) == common_tail(alike[1], image):
            return image  # nobody knows which
        return alike[0] if alike else image


class AskForColumns(Exception):
    """A file's columns have to be mapped by a person first."""

    def __init__(self, file: Path, examples: dict[str, list[str]]) -> None:
        self.file, self.examples = file, examples


def _paths(row: Row) -> list[Path]:
    return [image for image in row.images if isinstance(image, Path)]


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # so that what is half written is removed


def main(folder: Path) -> int:
    """Run the import of a dataset's folder; 0 if it has come to an outcome that is no failure."""
    signal.signal(signal.SIGTERM, _end)
    dataset = Dataset(folder)
    wanted = read_json(folder / IMPORT) or {}
    outcome: dict[str, Any]
    try:
        outcome = Import(dataset, wanted, Progress()).run()
    except AskForColumns as asked:
        guess = columns.guess(asked.examples)
        outcome = {"state": "columns", "file": asked.file.name, "columns": asked.examples, "guess": guess}
    except StudioError as error:
        values = {name: str(value) for name, value in error.values.items()}
        outcome = {"state": "failed", "message": error.message, "values": values}
    except FinetuneError as error:
        message = error.message.replace(f"{dataset.files}/", "")  # where uploads are is of no use to anybody
        outcome = {"state": "failed", "message": message, "values": {}}
    except (OSError, RecursionError, MemoryError) as error:
        outcome = {"state": "failed", "message": "data.error_import", "values": {"reason": str(error)[:300]}}
    outcome["at"] = time.time()
    with suppress(StudioError):
        write_json(folder / OUTCOME, outcome)
    if outcome["state"] == "failed":
        print(outcome["message"], outcome["values"] or "")
    return 1 if outcome["state"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
