"""One record of a data file to one chat: ShareGPT, Alpaca, OpenAI messages, and captions.

ShareGPT's and Alpaca's columns and tags are LLaMA-Factory's (its data/README.md); OpenAI messages are those of its chat
completions, contents as texts or as lists of parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.data.layouts import Layout
from finetune.data.pairs.records import split_pair
from finetune.data.row_fields import fill_placeholders, refuse_fields
from finetune.data.row_media import IMAGE, VIDEO, InlineMedia, Video, one_image, read_images, read_videos, resolve
from finetune.data.turns import UNLABELLED, alpaca_turns, chat_turns, check_order, images_first, system_turn
from finetune.errors import FinetuneError
from modelfiles import counted

CAPTION_PROMPT = "Describe this image."


@dataclass(frozen=True)
class Row:
    """One chat, or a pair of chats (see make_row).

    messages: a chat template's, {"role", "content": [{"type": "text" | "image" | "video", ...}]};

    images: a path, data URI or URL for each image part, in order; videos: one for each video part, in order; source:
    "file, row 3" for messages to the user; unlabelled: indices of the answers that are no labels.
    """

    messages: list[dict[str, Any]]
    images: list[Path | str]
    tools: list[Any] | None
    source: str
    videos: list[Video] = field(default_factory=list)
    unlabelled: tuple[int, ...] = ()


def make_row(record: Any, layout: Layout, source: str) -> Row:
    """The chat of a record; of a pair, the chat with the better and then the worse answer as its last two messages.

    Raises FinetuneError naming the row and turn.
    """
    if not layout.ranking:
        return _make_chat(record, layout, source)
    chosen, rejected = (_make_chat(answered, layout, source) for answered in split_pair(record, layout, source))
    question = chosen.messages[:-1]
    return replace(
        chosen,
        messages=[*question, chosen.messages[-1], rejected.messages[-1]],
        unlabelled=tuple(n for n, message in enumerate(question) if message["role"] == "assistant"),
    )


def _make_chat(record: Any, layout: Layout, source: str) -> Row:
    if not isinstance(record, dict):
        raise FinetuneError(f"{source}: a row must be an object, not {type(record).__name__}.")
    refuse_fields(record, layout, source)
    if layout.kind == "caption":
        record = _caption(record, source)
    images = read_images(layout.read(record, "images"), layout.columns["images"], source)
    videos = read_videos(layout.read(record, "videos"), layout.columns["videos"], source)
    inline = InlineMedia()
    if layout.kind in ("alpaca", "caption"):
        messages = alpaca_turns(record, layout, source)
    else:
        messages = chat_turns(record, layout, source, inline)
    if (inline.images and images) or (inline.videos and videos):
        column = "images" if inline.images and images else "videos"
        name = layout.columns[column]
        raise FinetuneError(f"{source}: {column} are given both in {name!r} and in the messages' parts.")
    images, videos = images or inline.images, videos or inline.videos
    if system := record.get(layout.columns["system"]):
        messages.insert(0, system_turn(system, source))
    check_order(messages, layout, source)
    images_first(messages, len(images))
    fill_placeholders(messages, record, layout, source)
    _check_counts(messages, images, videos, source)
    unlabelled = tuple(n for n, message in enumerate(messages) if message.pop(UNLABELLED, False))
    messages, images, videos = _until_last_label(messages, images, videos, unlabelled, source)
    return Row(
        messages,
        [resolve(image, layout.media) for image in images],
        _tools(record.get(layout.columns["tools"]), source),
        source,
        [
            Video(resolve(v, layout.media) if isinstance(v, str) else tuple(resolve(f, layout.media) for f in v))
            for v in videos
        ],
        tuple(n for n in unlabelled if n < len(messages) and messages[n]["role"] == "assistant"),
    )


def _check_counts(messages: list[dict[str, Any]], images: list[str], videos: list[Any], source: str) -> None:
    kinds = [part["type"] for message in messages for part in message["content"]]
    if kinds.count("image") != len(images):
        raise FinetuneError(
            f"{source}: the text has {IMAGE} {counted(kinds.count('image'), 'time')}, the row has "
            f"{counted(len(images), 'image')}."
        )
    if kinds.count("video") != len(videos):
        hint = " (a video's frames are a list in that list)" if len(videos) > kinds.count("video") > 0 else ""
        raise FinetuneError(
            f"{source}: the text has {VIDEO} {counted(kinds.count('video'), 'time')}, the row has "
            f"{counted(len(videos), 'video')}{hint}."
        )


def _until_last_label(
    messages: list[dict[str, Any]], images: list[str], videos: list[Any], unlabelled: tuple[int, ...], source: str
) -> tuple[list[dict[str, Any]], list[str], list[Any]]:
    """The chat up to the last answer that is a label: what follows it changes nothing that is learnt."""
    labels = [n for n, m in enumerate(messages) if m["role"] == "assistant" and n not in unlabelled]
    if not labels:
        raise FinetuneError(f"{source}: weight, loss or train turns off every answer, so nothing would be learnt.")
    messages = messages[: labels[-1] + 1]
    kinds = [part["type"] for message in messages for part in message["content"]]
    return messages, images[: kinds.count("image")], videos[: kinds.count("video")]


def _caption(record: dict[str, Any], source: str) -> dict[str, Any]:
    """A caption as an instruction; `file_name` is what Hugging Face's image folders call the image."""
    image, text = record.get("image", record.get("file_name")), record.get("text", record.get("caption"))
    if one_image(image) is None or not isinstance(text, str):
        raise FinetuneError(f"{source}: a caption needs `image` (or `file_name`) and `text`.")
    return {"instruction": IMAGE + CAPTION_PROMPT, "output": text, "images": [image]}


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
