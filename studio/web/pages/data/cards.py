"""Rows, filters and lengths in the form in which the templates of the page Data show them."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args
from urllib.parse import urlencode

from starlette.requests import Request

from finetune.data.row_media import MARKS
from finetune.preflight.preview import round_edges
from studio.datasets.index import Filter, IndexedRow, Order, Page, Show
from studio.datasets.records import box_span, boxes_of, is_editable, picture_names
from studio.errors import StudioError
from studio.web.render import message_of


@dataclass(frozen=True)
class Card:
    """A row as the page shows it.

    turns: (role, text) without the marks of pictures; boxes: x, y, width, height in pixels of the first picture, whose
    size is (width, height); points: x, y.
    """

    row: IndexedRow
    turns: list[tuple[str, str]]
    pictures: int
    size: tuple[int, int] | None
    problem: str
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def question(self) -> str:
        return next((text for role, text in reversed(self.turns) if role == "user"), "")

    @property
    def answer(self) -> str:
        return next((text for role, text in reversed(self.turns) if role == "assistant"), "")


def card_of(request: Request, row: IndexedRow, sizes: dict[str, tuple[int, int]], box_format: str | None) -> Card:
    names = picture_names(row.record)
    size = sizes.get(names[0]) if names else None
    turns = (
        [(t["role"], MARKS.sub("", t["content"]).strip()) for t in row.record["messages"]]
        if is_editable(row.record)
        else []
    )
    problem = message_of(request, StudioError(row.problem)) if row.problem else ""
    card = Card(row, turns, len(names), size, problem)
    found = boxes_of(row.record) if size and len(names) == 1 else []
    if not found or size is None:
        return card
    span = box_span(found, size, box_format)
    scale = (size[0] / span[0], size[1] / span[1])
    for box in found:
        xs, ys = sorted(x * scale[0] for x in box[::2]), sorted(y * scale[1] for y in box[1::2])
        if len(box) == 2:
            card.points.append((xs[0], ys[0]))
        else:
            card.boxes.append((xs[0], ys[0], xs[1] - xs[0], ys[1] - ys[0]))
    return card


def filter_of(query: dict[str, list[str]]) -> tuple[Filter, int]:
    """The filter and the page's number of a query; what makes no sense in it is not taken."""
    given = {name: values[-1].strip() for name, values in query.items()}
    show: Show = given.get("show", "all") if given.get("show") in get_args(Show) else "all"  # type: ignore[assignment]
    order: Order = given.get("order", "") if given.get("order") in get_args(Order) else "problems"  # type: ignore[assignment]

    def number(name: str) -> int | None:
        text = given.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 10 else None

    wanted = Filter(
        show,
        order,
        given.get("split", ""),
        given.get("source", ""),
        given.get("text", "")[:200],
        number("min_tokens"),
        number("max_tokens"),
    )
    return wanted, number("page") or 1


def query_of(wanted: Filter, page: int, version: int | None) -> str:
    """The filter as the query of a link."""
    values = {name: value for name, value in vars(wanted).items() if value not in ("", None)}
    values |= {"page": page} | ({"version": version} if version else {})
    return urlencode(values)


def pager_numbers(page: Page) -> list[int | None]:
    """The numbers of pages that the pager names; None for a gap."""
    near = sorted({1, page.last, *range(max(1, page.number - 2), min(page.last, page.number + 2) + 1)})
    found: list[int | None] = []
    for number in near:
        if found and number - (found[-1] or 0) > 1:
            found.append(None)
        found.append(number)
    return found


@dataclass(frozen=True)
class Bar:
    """Rows of `low` to `high` tokens; height: of 100 for the highest bar."""

    low: int
    high: int
    rows: int
    height: int


def bars_of(lengths: Sequence[int]) -> list[Bar]:
    """The histogram of rows by tokens. lengths: in order."""
    if not lengths:
        return []
    edges = round_edges(lengths[0], lengths[-1])
    below = [0, *(bisect_left(lengths, edge) for edge in edges[1:-1]), len(lengths)]
    counts = [high - low for low, high in itertools.pairwise(below)]
    top = max(counts)
    return [
        Bar(low, high - 1, count, max(2, round(100 * count / top)) if count else 0)
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
