"""Rows of a data file as questions to a server: ShareGPT or OpenAI messages whose last turn is the right answer."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfiles import counted

MAX_FILE_BYTES = 1_000_000_000
MARK = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class QuestionError(ValueError):
    """The data file cannot be asked; one sentence names the file and the row."""


@dataclass(frozen=True)
class Question:
    """turns: (role, text with an <image> for each image) before the answer; images: base64, in the marks' order."""

    turns: list[tuple[str, str]]
    images: list[str]
    label: str

    def ollama_messages(self) -> list[dict[str, Any]]:
        """Images that open a turn need no place; others stand where Ollama's [img] says."""
        waiting = list(self.images)
        messages: list[dict[str, Any]] = []
        for role, text in self.turns:
            count = text.count(MARK)
            own, waiting = waiting[:count], waiting[count:]
            text = text[count * len(MARK) :] if text.startswith(MARK * count) else text.replace(MARK, "[img]")
            messages.append({"role": role, "content": text, **({"images": own} if own else {})})
        return messages

    def openai_messages(self) -> list[dict[str, Any]]:
        waiting = iter(self.images)
        messages: list[dict[str, Any]] = []
        for role, text in self.turns:
            parts: list[dict[str, Any]] = []
            first, *rest = text.split(MARK)
            parts += [{"type": "text", "text": first}] if first else []
            for piece in rest:
                url = f"data:image/png;base64,{next(waiting)}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
                parts += [{"type": "text", "text": piece}] if piece else []
            messages.append({"role": role, "content": parts if rest else text})
        return messages


def read_questions(path: Path, limit: int) -> list[Question]:
    """The first `limit` rows of a JSON or JSON Lines file; images are files beside it. Raises QuestionError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise QuestionError(f"{path} has over {MAX_FILE_BYTES:,} bytes.")
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise QuestionError(f"{path} cannot be read as JSON or JSON Lines: {error}.") from None
    if not rows:
        raise QuestionError(f"{path} has no rows.")
    return [_question(row, f"{path}, row {number}", path.parent) for number, row in enumerate(rows[:limit], 1)]


def _question(row: Any, source: str, folder: Path) -> Question:
    try:
        listed = row.get("messages") or row["conversations"]
        turns = [(_ROLES[turn.get("role") or turn["from"]], turn.get("content") or turn["value"]) for turn in listed]
        images = row.get("images") or []
        images = images if isinstance(images, list) else [images]
        *turns, (role, label) = turns
        if not turns or role != "assistant" or not all(isinstance(text, str) for _, text in [*turns, (role, label)]):
            raise TypeError("the last turn must be the assistant's, and every turn a text")
        marks = sum(text.count(MARK) for _, text in turns)
        if not marks and images:
            first = next(index for index, (who, _) in enumerate(turns) if who == "user")
            turns[first] = ("user", MARK * len(images) + turns[first][1])
        elif marks != len(images):
            raise ValueError(f"{counted(marks, 'time')} {MARK}, but {counted(len(images), 'image')}")
        encoded = [base64.b64encode((folder / image).read_bytes()).decode() for image in images]
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration, OSError) as error:
        raise QuestionError(f"{source} cannot be asked: {type(error).__name__}: {error}.") from None
    return Question(turns, encoded, label)
