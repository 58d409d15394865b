"""Answers as they come: generated_predictions.jsonl, LLaMA-Factory's file, written so that a stopped run goes on."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from finetune.data.formats import Row
from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import new_file

PREDICTIONS = "generated_predictions.jsonl"


class Predictions:
    """generated_predictions.jsonl while it grows. A first line in a sidecar says which run it belongs to.

    Answers are on the disk; in memory is where they are in the file.
    """

    def __init__(self, folder: Path, identity: str, total: int, overwrite: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinetuneError(f"output_dir: {folder} cannot be made: {error}.") from None
        self.path = folder / PREDICTIONS
        self._partial = folder / f".{PREDICTIONS}.partial"
        self._starts = np.full(total, -1, np.int64)  # of the rows' lines in the file; -1: not answered
        self._count = 0
        goes_on = not overwrite and self._is_of(identity)
        if self.path.exists() and not goes_on and not overwrite:
            raise FinetuneError(
                f"output_dir: {self.path} exists; set overwrite_output_dir: true, or choose another folder."
            )
        with new_file(self._partial) as file:  # a kill now loses no answer
            file.write(f"{identity}\n".encode())
            for record in _whole_lines(self._partial, total) if goes_on else ():
                self._write(file, record)
        self._file = self._partial.open("ab")

    def __len__(self) -> int:
        """The rows that are answered."""
        return self._count

    def open_rows(self) -> list[int]:
        """The rows that are not."""
        return np.flatnonzero(self._starts < 0).tolist()

    def records(self) -> Records:
        """The answers so far, in the dataset's order."""
        return Records(self._partial, self._starts[self._starts >= 0])

    def add(self, record: dict[str, Any]) -> None:
        self._write(self._file, record)
        self._file.flush()

    def finish(self) -> Path:
        """Puts the records into the dataset's order, under the final name."""
        self.close()
        with new_file(self.path) as file:
            for record in self.records():
                file.write(_line(record))
        self._partial.unlink()
        return self.path

    def close(self) -> None:
        """Ends the writing; what was answered stays for a run that goes on."""
        self._file.close()

    def _is_of(self, identity: str) -> bool:
        """Whether there is a file of a run that was stopped, and it is this run's."""
        if not self._partial.exists():
            return False
        with self._partial.open("rb") as file:
            return file.readline().rstrip(b"\n") == identity.encode()

    def _write(self, file: BinaryIO, record: dict[str, Any]) -> None:
        self._count += int(self._starts[record["index"]] < 0)
        self._starts[record["index"]] = file.tell()
        file.write(_line(record))


class Records(Sequence[dict[str, Any]]):
    """Records in a file of JSON lines, each read when it is asked for. starts: [N], where its line begins in bytes."""

    def __init__(self, path: Path, starts: Any) -> None:
        self.starts = np.asarray(starts, np.int64)
        self._lines: bytes | mmap.mmap = b""
        if len(self.starts):  # an empty file cannot be mapped
            with path.open("rb") as file:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = int(self.starts[index])
        end = self._lines.find(b"\n", start)
        return json.loads(self._lines[start : end if end >= 0 else len(self._lines)])


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _whole_lines(path: Path, total: int) -> Iterator[dict[str, Any]]:
    """The answers in the file of a run that was stopped."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        next(file)
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                continue
            if 0 <= record["index"] < total:
                yield record


def record_of(index: int, row: Row, answer: str) -> dict[str, Any]:
    """A line of the file: what was asked, what was answered and what would have been right."""
    images = [str(path) for path in row.images if isinstance(path, Path)]
    record = {"index": index, "prompt": _prompt_text(row), "predict": answer, "label": _label(row), "images": images}
    if row.videos:  # a path, or the list of the frames' paths
        files = [[str(file) for file in video.files if isinstance(file, Path)] for video in row.videos]
        record["videos"] = [
            paths if isinstance(video.source, tuple) else paths[0]
            for video, paths in zip(row.videos, files, strict=True)
            if paths
        ]
    return record


def read_predictions(path: Path) -> Records:
    """The lines of the file, or of the one in the folder. Raises FinetuneError."""
    path = path / PREDICTIONS if path.is_dir() else path
    starts, start = array("q"), 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(start)
                start += len(line)
        records = Records(path, starts)
        if all(isinstance(r, dict) and isinstance(r.get("predict"), str) and "label" in r for r in records):
            return records
    except FileNotFoundError:
        raise FinetuneError(f"The file {path} does not exist.") from None
    except OSError as error:
        raise FinetuneError(f"The file {path} cannot be read: {error}.") from None
    except (ValueError, RecursionError):
        pass
    raise FinetuneError(f"{path} does not hold predictions.")


def _label(row: Row) -> str:
    message = row.messages[-1]
    if "tool_calls" in message:
        return json.dumps([call["function"] for call in message["tool_calls"]], ensure_ascii=False)
    return "".join(part["text"] for part in message["content"])


def _prompt_text(row: Row) -> str:
    """The chat before the answer, for people to read."""
    turns = []
    for message in row.messages[:-1]:
        text = "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
        turns.append(text if message["role"] == "user" else f"{message['role']}: {text}")
    return "\n".join(turns)
