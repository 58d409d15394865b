"""Answers as they come: generated_predictions.jsonl, LLaMA-Factory's file, written so that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.data.formats import Row
from finetune.data.records import read_records
from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import write_atomically

PREDICTIONS = "generated_predictions.jsonl"


class Predictions:
    """generated_predictions.jsonl while it grows. A first line in a sidecar says which run it belongs to."""

    def __init__(self, folder: Path, identity: str, total: int, overwrite: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinetuneError(f"output_dir: {folder} cannot be made: {error}.") from None
        self.path = folder / PREDICTIONS
        self._partial = folder / f".{PREDICTIONS}.partial"
        self.found: dict[int, dict[str, Any]] = {}
        lines = []
        if self._partial.exists() and not overwrite:
            lines = self._partial.read_text(encoding="utf-8", errors="replace").split("\n")
        if lines and lines[0] == identity:
            for line in lines[1:]:
                try:
                    record = json.loads(line)
                except ValueError:  # the line that was being written when the run was killed
                    continue
                if 0 <= record["index"] < total:
                    self.found[record["index"]] = record
        elif self.path.exists() and not overwrite:
            raise FinetuneError(
                f"output_dir: {self.path} exists; set overwrite_output_dir: true, or choose another folder."
            )
        known = (json.dumps(record, ensure_ascii=False) for record in self.found.values())
        write_atomically(self._partial, "\n".join((identity, *known, "")).encode())  # a kill now loses no answer
        self._file = self._partial.open("a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        self.found[record["index"]] = record
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self) -> Path:
        """Puts the records into the dataset's order, under the final name."""
        self.close()
        lines = (json.dumps(self.found[index], ensure_ascii=False) for index in sorted(self.found))
        write_atomically(self.path, "\n".join((*lines, "")).encode())
        self._partial.unlink()
        return self.path

    def close(self) -> None:
        """Ends the writing; what was answered stays for a run that goes on."""
        self._file.close()


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


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The lines of the file, or of the one in the folder. Raises FinetuneError."""
    path = path / PREDICTIONS if path.is_dir() else path
    records = list(read_records(path))
    if not all(isinstance(r, dict) and isinstance(r.get("predict"), str) and "label" in r for r in records):
        raise FinetuneError(f"{path} does not hold predictions.")
    return records


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
