"""Rows of a dataset as chats: reads dataset_info.json and the files it names, and checks each row.

The formats are LLaMA-Factory's (its data/README.md): `formatting: sharegpt` with `columns` and `tags`, json and jsonl.
A row becomes a list of chat-template messages in which every `<image>` is an image part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.recipe import Recipe

IMAGE = "<image>"

COLUMNS = {"messages": "conversations", "images": "images", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True)
class Row:
    """One chat. `messages` are a chat template's: {"role", "content": [{"type": "text" | "image", ...}]} in order.

    images: one path for each image part, in order; source: "file, row 3" for messages to the user.
    """

    messages: list[dict[str, Any]]
    images: list[Path]
    tools: list[Any] | None
    source: str


@dataclass(frozen=True)
class Dataset:
    """The rows of a split and the sha256 of the files they came from."""

    rows: list[Row]
    digest: str


def load_rows(names: str, recipe: Recipe) -> Dataset:
    """The rows of the named datasets, one after the other. Raises FinetuneError for the first row that is broken."""
    rows: list[Row] = []
    digest = hashlib.sha256()
    for row in read_rows(names, recipe, digest):
        if isinstance(row, FinetuneError):
            raise row
        rows.append(row)
    if not rows:
        raise FinetuneError(f"The dataset {names} has no rows.")
    return Dataset(rows, digest.hexdigest())


def read_rows(names: str, recipe: Recipe, digest: Any) -> Iterator[Row | FinetuneError]:
    """Every row, or what is wrong with it. Raises FinetuneError for a dataset that cannot be read at all.

    digest: a hash object that gets the data files' bytes.
    """
    folder = Path(recipe.dataset_dir)
    info = _read_json(folder / "dataset_info.json")
    media = Path(recipe.media_dir) if recipe.media_dir else folder
    for name in [part.strip() for part in names.split(",") if part.strip()]:
        if not isinstance(info, dict) or name not in info:
            known = ", ".join(info) if isinstance(info, dict) else "nothing"
            raise FinetuneError(f"{folder}/dataset_info.json has no dataset {name!r}; it has {known}.")
        entry = _entry(info[name], name, folder)
        path = folder / entry["file_name"]
        digest.update(path.read_bytes() if path.is_file() else b"")
        for number, record in enumerate(_records(path), 1):
            if recipe.max_samples and number > recipe.max_samples:
                break
            try:
                yield _row(record, entry, media, f"{path.name}, row {number}")
            except FinetuneError as error:
                yield error


def _entry(entry: Any, name: str, folder: Path) -> dict[str, Any]:
    """An entry of dataset_info.json with defaults filled in."""
    where = f"{folder}/dataset_info.json, {name}"
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise FinetuneError(f"{where}: an entry needs a file_name.")
    unknown = entry.keys() - {"file_name", "formatting", "columns", "tags"}
    if unknown:
        raise FinetuneError(f"{where}: the key {min(unknown)} is not supported.")
    formatting = entry.get("formatting", "alpaca")
    if formatting != "sharegpt":
        raise FinetuneError(f"{where}: the formatting {formatting!r} is not supported; use sharegpt.")
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    for given, known, kind in ((columns, COLUMNS, "columns"), (tags, TAGS, "tags")):
        if not isinstance(given, dict) or not given.keys() <= known.keys():
            raise FinetuneError(f"{where}: {kind} may have {', '.join(known)}; not {given!r}.")
    return {"file_name": entry["file_name"], "columns": COLUMNS | columns, "tags": TAGS | tags, "given": set(columns)}


def _records(path: Path) -> Iterator[Any]:
    if path.suffix == ".jsonl":
        try:
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            yield json.loads(line)
                        except ValueError as error:
                            raise FinetuneError(f"{path}, line {number}: not JSON: {error}.") from None
        except FileNotFoundError:
            raise FinetuneError(f"The data file {path} does not exist.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise FinetuneError(f"The data file {path} cannot be read: {error}.") from None
        return
    if path.suffix != ".json":
        raise FinetuneError(f"The data file {path} must be .json or .jsonl.")
    records = _read_json(path)
    if not isinstance(records, list):
        raise FinetuneError(f"{path} must hold a JSON list of rows.")
    yield from records


def _row(record: Any, entry: dict[str, Any], media: Path, source: str) -> Row:
    columns, tags = entry["columns"], entry["tags"]
    if not isinstance(record, dict):
        raise FinetuneError(f"{source}: a row must be an object, not {type(record).__name__}.")
    turns = record.get(columns["messages"])
    if not isinstance(turns, list) or not turns:
        raise FinetuneError(f"{source}: {columns['messages']!r} must be a list of turns.")
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "call",
        tags["system_tag"]: "system",
    }
    messages: list[dict[str, Any]] = []
    system = record.get(columns["system"])
    if system:
        messages.append({"role": "system", "content": _parts(system, source, 0)})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise FinetuneError(f"{source}, turn {number}: a turn must be an object.")
        role, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role not in roles:
            raise FinetuneError(f"{source}, turn {number}: {tags['role_tag']!r} is {role!r}; use {', '.join(roles)}.")
        messages.append(_message(roles[role], content, source, number))
    _check_order(messages, source)
    images = record.get(columns["images"]) or []
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise FinetuneError(f"{source}: {columns['images']!r} must be a list of paths.")
    placeholders = sum(part["type"] == "image" for message in messages for part in message["content"])
    if placeholders != len(images):
        raise FinetuneError(f"{source}: the text has {IMAGE} {placeholders} times, the row has {len(images)} images.")
    return Row(messages, [media / image for image in images], _tools(record.get(columns["tools"]), source), source)


def _message(role: str, content: Any, source: str, number: int) -> dict[str, Any]:
    if role != "call":
        parts = _parts(content, source, number)
        if role == "assistant" and any(part["type"] == "image" for part in parts):
            raise FinetuneError(f"{source}, turn {number}: an answer cannot hold {IMAGE}.")
        return {"role": role, "content": parts}
    try:
        call = json.loads(content) if isinstance(content, str) else content
        calls = call if isinstance(call, list) else [call]
        functions = [{"name": c["name"], "arguments": c["arguments"]} for c in calls]
    except (ValueError, KeyError, TypeError):
        raise FinetuneError(f'{source}, turn {number}: a call must be {{"name": ..., "arguments": ...}}.') from None
    return {"role": "assistant", "content": [], "tool_calls": [{"type": "function", "function": f} for f in functions]}


def _parts(content: Any, source: str, number: int) -> list[dict[str, Any]]:
    """The text split at its <image> marks."""
    if not isinstance(content, str):
        raise FinetuneError(f"{source}, turn {number}: the content must be a text, not {type(content).__name__}.")
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(IMAGE)):
        if index:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _check_order(messages: list[dict[str, Any]], source: str) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise FinetuneError(f"{source}: the system turn must come first.")
    chat = roles[1:] if roles[0] == "system" else roles
    for number, role in enumerate(chat, 1):
        asks = number % 2 == 1
        if (role in ("user", "tool")) != asks or (role == "tool" and number == 1):
            wanted = "the user" if asks else "the assistant"
            raise FinetuneError(f"{source}: turns must alternate; turn {number} is {role}'s but should be {wanted}'s.")
    if not chat or chat[-1] != "assistant":
        raise FinetuneError(f"{source}: the last turn must be the assistant's.")


def _tools(tools: Any, source: str) -> list[Any] | None:
    if tools in (None, "", []):
        return None
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError as error:
        raise FinetuneError(f"{source}: 'tools' is not JSON: {error}.") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise FinetuneError(f"{source}: 'tools' must be a list of objects.")
    return tools


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FinetuneError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None
