"""Chats rendered by what their template writes around texts, which is the same for all chats of one shape.

A chat template is a program, slow to run for a million rows, but it seldom looks into texts. For each shape of chat
(roles, and kinds of parts) it is run on marks in place of texts. That is its skeleton if each mark comes out once, in
order; then it is run on marks that hold each string that stands in the template, which is all that it can look for:
texts with a string that makes a difference, and those that are empty or that `trim` would change, are left to the
template itself. In every batch the first chat of each shape is rendered both ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateError

from finetune.data.formats import Row

OTHER = "And so on, 123 times; and more."  # than the marks: of another length, with other characters
Render = Callable[[Sequence[Row]], tuple[list[str], list[list[int]]]]


@dataclass(frozen=True)
class Skeleton:
    """What stands before, between and after a chat's texts. starts: (texts before, characters after the last of them)
    of where each answer begins; telling: matches texts that the template looks for, if there are any."""

    pieces: list[str]
    starts: list[tuple[int, int]]
    telling: re.Pattern[str] | None

    def fill(self, texts: Sequence[str]) -> tuple[str, list[int]]:
        """The chat with these texts, and where its answers begin in it."""
        whole = self.pieces[0]
        begins = [0]  # of the pieces
        for text, piece in zip(texts, self.pieces[1:], strict=True):
            whole += text
            begins.append(len(whole))
            whole += piece
        return whole, [begins[before] + after for before, after in self.starts]


class Skeletons:
    """The skeletons of a template by the shapes of chats. render: the template itself: chats, and where answers begin.

    Raises what `render` raises.
    """

    def __init__(self, template: str, render: Render) -> None:
        self.render = render
        self.strings = _strings(template)
        self._known: dict[Any, Skeleton | None] = {}

    def rendered(self, rows: Sequence[Row]) -> tuple[list[str], list[list[int]]]:
        """The chats, and where each one's answers begin."""
        found: list[tuple[str, list[int]] | None] = [None] * len(rows)
        first: dict[Any, int] = {}
        for number, row in enumerate(rows):
            shape, texts = _shape(row)
            if shape not in self._known:
                self._known[shape] = self._skeleton(row, texts)
            skeleton = self._known[shape]
            if skeleton is not None and _is_plain(texts, skeleton.telling):
                first.setdefault(shape, number)
                found[number] = skeleton.fill(texts)
        proven = list(first.values())
        for number, whole, starts in zip(proven, *self.render([rows[number] for number in proven]), strict=True):
            if found[number] != (whole, starts):  # the template knows more of texts than was found out
                self._known = dict.fromkeys(self._known)
                found = [None] * len(rows)
                break
        rest = [number for number, chat in enumerate(found) if chat is None]
        for number, whole, starts in zip(rest, *self.render([rows[number] for number in rest]), strict=True):
            found[number] = whole, starts
        return [chat[0] for chat in found if chat], [chat[1] for chat in found if chat]

    def _skeleton(self, row: Row, texts: Sequence[str]) -> Skeleton | None:
        """The skeleton of the row's shape; None if its texts are not simply written."""
        if self.strings is None or not texts or row.tools or any("tool_calls" in m for m in row.messages):
            return None
        marks = [f"q\ue000{number}z" for number in range(len(texts))]
        (whole,), (starts,) = self.render([_with_texts(row, marks)])
        pieces, rest = [], whole
        for mark in marks:
            piece, found, rest = rest.partition(mark)
            if not found:
                return None
            pieces.append(piece)
        if "\ue000" in "".join(pieces) + rest:
            return None
        placed = []
        for start in starts:
            before = whole[:start].count("\ue000")
            last = whole.index(marks[before - 1]) + len(marks[before - 1]) if before else 0
            placed.append((before, start - last))
        skeleton = Skeleton([*pieces, rest], placed, None)
        telling = [string for string in self.strings if not self._is_indifferent(row, marks, skeleton, [string])]
        harmless = [string for string in self.strings if string not in telling]
        if not self._is_indifferent(row, marks, skeleton, [*harmless, OTHER]):
            return None
        return Skeleton(skeleton.pieces, placed, re.compile("|".join(map(re.escape, telling))) if telling else None)

    def _is_indifferent(self, row: Row, marks: Sequence[str], skeleton: Skeleton, strings: Sequence[str]) -> bool:
        """Whether texts that hold the strings, and those that are one of them, are written like any others."""
        within = [f"{mark[:2]}{''.join(strings)}{mark[2:]}" for mark in marks]
        alone = [string for string in strings if len(strings) == 1 and string.strip() == string]
        for texts in (within, *([string] * len(marks) for string in alone)):
            (whole,), (starts,) = self.render([_with_texts(row, texts)])
            if (whole, starts) != skeleton.fill(texts):
                return False
        return True


def _strings(template: str) -> list[str] | None:
    """The strings in a template's expressions; None if it cannot be read."""
    try:
        tokens = [(kind, value) for _, kind, value in Environment().lex(template)]
    except TemplateError:
        return None
    return list(
        dict.fromkeys(
            value[1:-1].encode().decode("unicode_escape")
            for kind, value in tokens
            if kind == "string" and len(value) > 2
        )
    )


def _shape(row: Row) -> tuple[Any, list[str]]:
    """What is equal for chats of one shape, and the chat's texts."""
    shape: list[Any] = [row.unlabelled]
    texts: list[str] = []
    for message in row.messages:
        shape += message["role"], len(message)
        for part in message["content"]:
            shape.append(part["type"])
            if part["type"] == "text":
                texts.append(part["text"])
    return tuple(shape), texts


def _with_texts(row: Row, texts: Sequence[str]) -> Row:
    left = iter(texts)
    messages = [
        message
        | {"content": [part | {"text": next(left)} if part["type"] == "text" else part for part in message["content"]]}
        for message in row.messages
    ]
    return Row(messages, row.images, row.tools, row.source, row.videos, row.unlabelled)


def _is_plain(texts: Sequence[str], telling: re.Pattern[str] | None) -> bool:
    return all(text and text == text.strip() and not (telling and telling.search(text)) for text in texts)
