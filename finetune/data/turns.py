"""The turns of a chat: Alpaca's columns, ShareGPT's and OpenAI's lists, as messages of a chat template."""

from __future__ import annotations

import json
from typing import Any

from finetune.data.layouts import Layout
from finetune.data.row_media import IMAGE, MARKS, InlineMedia, flatten
from finetune.errors import FinetuneError

UNLABELLED = "unlabelled"  # a message's flag until the row is made
# Fields of an answer that say whether it is to be learnt: OpenAI's, ms-swift's, axolotl's.
LABEL_FIELDS = ("weight", "loss", "train")


def alpaca_turns(record: dict[str, Any], layout: Layout, source: str) -> list[dict[str, Any]]:
    """History, then instruction and input on lines of their own, then the output."""
    columns = layout.columns
    turns: list[Any] = []
    history = record.get(columns["history"]) or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise FinetuneError(f"{source}: {columns['history']!r} must be a list of [question, answer].")
    for pair in history:
        turns += pair
    asked = [record.get(columns["prompt"]), record.get(columns["query"])]
    if not all(text is None or isinstance(text, str) for text in asked) or not any(asked):
        raise FinetuneError(f"{source}: {columns['prompt']!r} must be a text.")
    answer = record.get(columns["response"])
    if isinstance(answer, list) and len(answer) == 1:  # VQA datasets list the answers that people gave
        answer = answer[0]
    turns += ["\n".join(text for text in asked if text), answer]
    roles = ("user", "assistant")
    return [_message(roles[n % 2], text, source, n + 1) for n, text in enumerate(turns)]


def chat_turns(record: dict[str, Any], layout: Layout, source: str, inline: InlineMedia) -> list[dict[str, Any]]:
    """ShareGPT's or OpenAI's turns; what content parts hold goes into `inline`."""
    tags, column = layout.tags, layout.columns["messages"]
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
        if isinstance(content, list):
            content = flatten(content, inline, f"{source}, turn {number}")
        if turn.get("tool_calls") and roles[role] == "assistant":
            message = _call(turn["tool_calls"], content or "", source, number)
        else:
            message = _message(roles[role], content, source, number)
        if not _is_labelled(turn, message["role"], f"{source}, turn {number}"):
            message[UNLABELLED] = True
        messages.append(message)
    return messages


def _is_labelled(turn: dict[str, Any], role: str, location: str) -> bool:
    """Whether a turn's tokens are labels. Raises FinetuneError for what cannot be honoured."""
    labelled = True
    for name in LABEL_FIELDS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise FinetuneError(f"{location}: {name!r} must be 0 or 1 (or false, true), not {str(value)[:40]!r}.")
        if value and role != "assistant":
            raise FinetuneError(f"{location}: {name!r} is {value!r}, but only answers can be labels; remove it.")
        labelled &= bool(value)
    return labelled


def system_turn(text: Any, source: str) -> dict[str, Any]:
    """The message of a `system` column."""
    return {"role": "system", "content": _parts(text, source, 0)}


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
    content = whole_characters(content)
    if "<" not in content:
        return [{"type": "text", "text": content}] if content else []
    pieces = MARKS.split(content)  # texts at even indices, marks between them
    return [
        {"type": piece[1:-1]} if index % 2 else {"type": "text", "text": piece}
        for index, piece in enumerate(pieces)
        if piece
    ]


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a character: JSON can spell halves, no tokenizer takes them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_order(messages: list[dict[str, Any]], layout: Layout, source: str) -> None:
    """User and assistant alternate; OpenAI's chats may have several turns of the user, or results, in a row.

    Raises FinetuneError.
    """
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise FinetuneError(f"{source}: the system turn must come first.")
    chat = roles[1:] if roles[0] == "system" else roles
    asks = True  # whether the user, or a tool, speaks next
    for number, role in enumerate(chat, 1):
        if layout.kind == "openai" and number > 1 and role == chat[number - 2] != "assistant":
            continue
        if (role in ("user", "tool")) != asks or (role == "tool" and number == 1):
            wanted = "the user" if asks else "the assistant"
            raise FinetuneError(f"{source}: turns must alternate; turn {number} is {role}'s but should be {wanted}'s.")
        asks = not asks
    if not chat or chat[-1] != "assistant":
        raise FinetuneError(f"{source}: the last turn must be the assistant's.")


def images_first(messages: list[dict[str, Any]], images: int) -> None:
    """Puts images that no text has a mark for in front of the first question, as LLaVA and TRL do."""
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is not None and not any(part["type"] == "image" for message in messages for part in message["content"]):
        first["content"][:0] = [{"type": IMAGE[1:-1]}] * images
