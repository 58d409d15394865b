"""One record of a data file to one chat: ShareGPT, Alpaca, OpenAI messages, and captions.

ShareGPT's and Alpaca's columns and tags are LLaMA-Factory's (its data/README.md); OpenAI messages are those of its chat
completions, contents as texts or as lists of parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.row_media import (
    IMAGE,
    MARKS,
    VIDEO,
    Inline,
    Video,
    flatten,
    one_image,
    place,
    read_images,
    read_videos,
)
from finetune.errors import FinetuneError

CAPTION_PROMPT = "Describe this image."
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


@dataclass(frozen=True)
class Row:
    """One chat. `messages` are a chat template's: {"role", "content": [{"type": "text" | "image" | "video", ...}]}.

    images: a path, data URI or URL for each image part, in order; videos: one for each video part, in order; source:
    "file, row 3" for messages to the user.
    """

    messages: list[dict[str, Any]]
    images: list[Path | str]
    tools: list[Any] | None
    source: str
    videos: list[Video] = field(default_factory=list)


@dataclass(frozen=True)
class Format:
    """How a data file's records are to be read. media: the folder that paths of images and videos are relative to."""

    kind: str
    media: Path
    columns: dict[str, str] = field(default_factory=lambda: dict(COLUMNS))
    tags: dict[str, str] = field(default_factory=lambda: dict(TAGS))


def detect(record: Any, media: Path, where: str) -> Format:
    """The format of a file that dataset_info.json says nothing of, from its first record. Raises FinetuneError."""
    keys = record.keys() if isinstance(record, dict) else set()
    if "conversations" in keys:
        return Format("sharegpt", media)
    if "messages" in keys:
        return Format("openai", media, COLUMNS | {"messages": "messages"}, dict(OPENAI_TAGS))
    if "instruction" in keys:
        return Format("alpaca", media)
    if keys & {"image", "file_name"}:
        return Format("caption", media)
    raise FinetuneError(
        f"{where}: cannot tell its format; a record needs `conversations`, `messages`, `instruction`, or `image`."
    )


def make_row(record: Any, form: Format, source: str) -> Row:
    """The chat of a record. Raises FinetuneError naming the row and turn."""
    if not isinstance(record, dict):
        raise FinetuneError(f"{source}: a row must be an object, not {type(record).__name__}.")
    if form.kind == "caption":
        record = _caption(record, source)
    columns = form.columns
    images = read_images(record.get(columns["images"]), columns["images"], source)
    videos = read_videos(record.get(columns["videos"]), columns["videos"], source)
    inline = Inline()
    if form.kind in ("alpaca", "caption"):
        messages = _alpaca(record, columns, source)
    else:
        messages = _chat(record, form, source, inline)
    if (inline.images and images) or (inline.videos and videos):
        column = "images" if inline.images and images else "videos"
        raise FinetuneError(f"{source}: {column} are given both in {columns[column]!r} and in the messages' parts.")
    images, videos = images or inline.images, videos or inline.videos
    system = record.get(columns["system"])
    if system:
        messages.insert(0, {"role": "system", "content": _parts(system, source, 0)})
    _check_order(messages, source)
    kinds = [part["type"] for message in messages for part in message["content"]]
    if kinds.count("image") != len(images):
        raise FinetuneError(
            f"{source}: the text has {IMAGE} {kinds.count('image')} times, the row has {len(images)} images."
        )
    if kinds.count("video") != len(videos):
        hint = " (a video's frames are a list in that list)" if len(videos) > kinds.count("video") > 0 else ""
        raise FinetuneError(
            f"{source}: the text has {VIDEO} {kinds.count('video')} times, the row has {len(videos)} videos{hint}."
        )
    return Row(
        messages,
        [place(image, form.media) for image in images],
        _tools(record.get(columns["tools"]), source),
        source,
        [
            Video(place(video, form.media) if isinstance(video, str) else tuple(place(f, form.media) for f in video))
            for video in videos
        ],
    )


def _caption(record: dict[str, Any], source: str) -> dict[str, Any]:
    """A caption as an instruction; `file_name` is what Hugging Face's image folders call the image."""
    image, text = record.get("image", record.get("file_name")), record.get("text", record.get("caption"))
    if one_image(image) is None or not isinstance(text, str):
        raise FinetuneError(f"{source}: a caption needs `image` (or `file_name`) and `text`.")
    return {"instruction": IMAGE + CAPTION_PROMPT, "output": text, "images": [image]}


def _alpaca(record: dict[str, Any], columns: dict[str, str], source: str) -> list[dict[str, Any]]:
    """History, then instruction and input on lines of their own, then the output."""
    turns: list[Any] = []
    history = record.get(columns["history"]) or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise FinetuneError(f"{source}: {columns['history']!r} must be a list of [question, answer].")
    for pair in history:
        turns += pair
    asked = [record.get(columns["prompt"]), record.get(columns["query"])]
    if not all(text is None or isinstance(text, str) for text in asked) or not any(asked):
        raise FinetuneError(f"{source}: {columns['prompt']!r} must be a text.")
    turns += ["\n".join(text for text in asked if text), record.get(columns["response"])]
    roles = ("user", "assistant")
    return [_message(roles[n % 2], text, source, n + 1) for n, text in enumerate(turns)]


def _chat(record: dict[str, Any], form: Format, source: str, inline: Inline) -> list[dict[str, Any]]:
    """ShareGPT's or OpenAI's turns; what content parts hold goes into `inline`."""
    tags, column = form.tags, form.columns["messages"]
    turns = record.get(column)
    if not isinstance(turns, list) or not turns:
        raise FinetuneError(f"{source}: {column!r} must be a list of turns.")
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "call",
        tags["system_tag"]: "system",
    }
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise FinetuneError(f"{source}, turn {number}: a turn must be an object.")
        role, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role not in roles:
            raise FinetuneError(f"{source}, turn {number}: {tags['role_tag']!r} is {role!r}; use {', '.join(roles)}.")
        if isinstance(content, list) and form.kind == "openai":
            content = flatten(content, inline, f"{source}, turn {number}")
        if turn.get("tool_calls") and roles[role] == "assistant":
            messages.append(_call(turn["tool_calls"], content or "", source, number))
        else:
            messages.append(_message(roles[role], content, source, number))
    return messages


def _message(role: str, content: Any, source: str, number: int) -> dict[str, Any]:
    if role == "call":
        try:
            calls = json.loads(content) if isinstance(content, str) else content
        except ValueError:
            calls = None
        return _call(calls if isinstance(calls, list) else [calls], "", source, number)
    parts = _parts(content, source, number)
    if role == "assistant":
        for part in parts:
            if part["type"] != "text":
                raise FinetuneError(f"{source}, turn {number}: an answer cannot hold <{part['type']}>.")
    return {"role": role, "content": parts}


def _call(calls: Any, text: str, source: str, number: int) -> dict[str, Any]:
    """An answer that calls functions: ShareGPT's {"name", "arguments"} or OpenAI's {"function": {...}}."""
    functions = []
    try:
        for call in calls:
            function = call.get("function", call)
            arguments = function["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            functions.append({"name": function["name"], "arguments": arguments})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FinetuneError(f'{source}, turn {number}: a call must be {{"name": ..., "arguments": ...}}.') from None
    message = _message("assistant", text, source, number)
    return message | {"tool_calls": [{"type": "function", "function": function} for function in functions]}


def _parts(content: Any, source: str, number: int) -> list[dict[str, Any]]:
    """The text split at its <image> and <video> marks."""
    if not isinstance(content, str):
        raise FinetuneError(f"{source}, turn {number}: the content must be a text, not {type(content).__name__}.")
    if "<" not in content:
        return [{"type": "text", "text": content}] if content else []
    pieces = MARKS.split(content)  # texts at even places, marks between them
    return [
        {"type": piece[1:-1]} if index % 2 else {"type": "text", "text": piece}
        for index, piece in enumerate(pieces)
        if piece
    ]


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
