"""How the records of a data file are laid out: what dataset_info.json says, or what the first record shows.

Columns and tags are LLaMA-Factory's (its data/README.md); their names are the fields of a record.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data.row_media import one_image
from finetune.errors import FinetuneError

FORMATS = ("alpaca", "sharegpt", "openai", "caption")
COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
# Question and answer columns by the names that datasets give them; of ms-swift, of TRL and others, of VQA datasets.
PAIRS = (("query", "response"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


@dataclass(frozen=True)
class Layout:
    """How a data file's records are to be read.

    media: the folder that paths of images and videos are relative to; columns, tags: names of fields by what they are;
    box_format: the recipe's, for the boxes in `objects`; ranking: whether a record has a better and a worse answer.
    """

    kind: str
    media: Path
    columns: dict[str, str] = field(default_factory=lambda: dict(COLUMNS))
    tags: dict[str, str] = field(default_factory=lambda: dict(TAGS))
    box_format: str | None = None
    ranking: bool = False

    def names(self, column: str) -> tuple[str, ...]:
        """The fields that hold a column: `image` stands for `images` where no other name is given."""
        name = self.columns[column]
        return (name, name[:-1]) if name in ("images", "videos") else (name,)

    def read(self, record: dict[str, Any], column: str) -> Any:
        """A column's value; None if the record has none."""
        return next((record[name] for name in self.names(column) if record.get(name) is not None), None)

    def known_fields(self) -> set[str]:
        """The fields of a record that are read."""
        if self.kind == "caption":
            return {"image", "file_name", "text", "caption"}
        pair = {"prompt", "query", "response", "history"}
        columns = self.columns.keys() - (pair if self.kind != "alpaca" else {"messages"})
        return {name for column in columns for name in self.names(column)}


def detect(record: Any, media: Path, location: str) -> Layout:
    """The layout of a file that dataset_info.json says nothing of, from its first record. Raises FinetuneError."""
    keys = record.keys() if isinstance(record, dict) else set()
    for column in ("conversations", "messages"):
        if column in keys:
            turns = record[column]
            first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
            openai = "role" in first if first.keys() & {"role", "from"} else column == "messages"
            chat = Layout("openai" if openai else "sharegpt", media, COLUMNS | {"messages": column})
            return replace(chat, tags=dict(OPENAI_TAGS)) if openai else chat
    if "instruction" in keys:
        return Layout("alpaca", media)
    for question, answer in PAIRS:
        if {question, answer} <= keys:
            return Layout("alpaca", media, COLUMNS | {"prompt": question, "query": "input", "response": answer})
    if keys & {"image", "file_name"} and keys & {"text", "caption"}:
        return Layout("caption", media)
    if keys & {"image", "file_name"} and isinstance(record, dict) and not _texts(record):
        return Layout("caption", media)  # the row's own message says what it lacks
    found = f"it has {', '.join(map(str, keys))}; " if keys else ""
    raise FinetuneError(
        f"{location}: cannot tell its format; a record needs `conversations`, `messages`, `instruction`, or `image`. "
        f"{found}{columns_hint(record)}"
    )


def columns_hint(record: Any) -> str:
    """The line of dataset_info.json that would fit a record, as far as its values show."""
    if not isinstance(record, dict):
        return "a row must be an object."
    columns: dict[str, str] = {}
    chat = next((key for key, value in record.items() if _is_chat(value)), None)
    texts = _texts(record)
    if chat is not None:
        columns["messages"] = chat
    elif len(texts) > 1:
        columns |= {"prompt": texts[0], "response": texts[-1]}
    image = next((key for key, value in record.items() if _is_image(value)), None)
    if image is not None:
        columns["images"] = image
    if not columns.keys() & {"messages", "prompt"}:
        return 'name its fields in dataset_info.json: "columns": {"prompt": ..., "response": ..., "images": ...}.'
    line = ", ".join(f'"{column}": "{name}"' for column, name in columns.items())
    return f'in dataset_info.json this may fit: "columns": {{{line}}}.'


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _texts(record: dict[str, Any]) -> list[str]:
    return [key for key, value in record.items() if isinstance(value, str) and not _is_image(value)]


def _is_image(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_image, value))
    if isinstance(value, dict):
        return one_image(value) is not None
    return isinstance(value, str) and value.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))
