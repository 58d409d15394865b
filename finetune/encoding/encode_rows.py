"""All rows of a recipe's datasets to a table of encoded chats, in several processes where there are many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from finetune.data.datasets import Parts, read_datasets
from finetune.data.formats import Row
from finetune.data.tables.processes import spread
from finetune.data.tables.rows import Rows
from finetune.encoding.boxes import PlacedRows, boxes_in, place_boxes, refuse_boxes
from finetune.encoding.encoded import Compact
from finetune.encoding.encoded_rows import EncodedBatch, EncodedRows, EncodedTable, pack
from finetune.encoding.encoder import Encoder
from finetune.errors import FinetuneError
from finetune.media.bank import Bank
from finetune.recipe.schema import Recipe

TASK_ROWS = 512


@dataclass(frozen=True)
class EncodedDatasets:
    """The rows of a recipe's datasets, encoded; those that are broken too. wrong: what is wrong with them."""

    parts: Parts
    rows: Rows
    table: EncodedTable
    wrong: dict[int, str]

    def sound(self, recipe: Recipe, model_type: str) -> tuple[PlacedRows, EncodedRows]:
        """The rows that can be used, mixed as the recipe says. Raises FinetuneError if a dataset has none."""
        sound = np.ones(len(self.rows), dtype=bool)
        sound[list(self.wrong)] = False
        order = self.parts.mixed(sound, recipe)
        rows = PlacedRows(self.rows.take(order), self.table.encoder, model_type, recipe)
        return rows, EncodedRows(self.table, order)


@dataclass(frozen=True)
class _State:
    """What a process encodes with. encoder: with a bank of its own."""

    encoder: Encoder
    rows: Rows
    model_type: str
    recipe: Recipe


def encode_datasets(
    names: str, recipe: Recipe, encoder: Encoder, model_type: str, open_encoder: Callable[[], Encoder]
) -> EncodedDatasets:
    """Reads and encodes the named datasets. Raises FinetuneError if one cannot be read at all.

    encoder: its bank gets the images of the rows that are sound; open_encoder: makes one like it, in other processes.
    """
    refuse_boxes(encoder, model_type, recipe)
    parts = read_datasets(names, recipe)
    rows = parts.together
    tasks = ((start, min(start + TASK_ROWS, len(rows))) for start in range(0, len(rows), TASK_ROWS))
    state = partial(_open, open_encoder, rows, model_type, recipe)
    here = _State(encoder.with_an_empty_bank(), rows, model_type, recipe)
    batches = spread(_encode, state, tasks, recipe.preprocessing_num_workers, here)
    table = EncodedTable(batches, encoder, rows.source)
    return EncodedDatasets(parts, rows, table, table.wrong)


def _open(open_encoder: Callable[[], Encoder], rows: Rows, model_type: str, recipe: Recipe) -> _State:
    return _State(open_encoder(), rows, model_type, recipe)


def _encode(state: _State, task: tuple[int, int]) -> EncodedBatch:
    rows = list(state.rows[slice(*task)])
    return _batch(rows, list(_compact(rows, state)), state.encoder.bank)


def encode_sound(rows: Iterable[Row], encoder: Encoder, source: Callable[[int], str], prompts: bool) -> EncodedRows:
    """Rows that are all sound, in order, in a table of their own. Raises FinetuneError for the first that is not.

    source: a row's by its number, for messages; prompts: without their last answers.
    """
    table = EncodedTable(_sound_batches(iter(rows), encoder, prompts), encoder, source)
    return EncodedRows(table, np.arange(len(table)))


def _sound_batches(rows: Iterator[Row], encoder: Encoder, prompts: bool) -> Iterator[EncodedBatch]:
    while some := list(islice(rows, TASK_ROWS)):
        chats = encoder.compact_prompts(some) if prompts else encoder.compact(some)
        for chat in chats:
            if isinstance(chat, FinetuneError):
                raise chat
        yield _batch(some, chats, encoder.bank)


def _batch(rows: Sequence[Row | FinetuneError], chats: Sequence[Compact | FinetuneError], bank: Bank) -> EncodedBatch:
    """Encoded rows for the table. bank: what their media are indices into."""
    numbers: dict[int, int] = {}  # of the bank's media, in the order of this batch
    media: list[int] = []
    for chat in chats:
        if isinstance(chat, Compact):
            media += [numbers.setdefault(index, len(numbers)) for index in chat.media]
    good = [isinstance(chat, Compact) for chat in chats]
    return EncodedBatch(
        table=pack(chats),
        labels=np.array([c.labels if isinstance(c, Compact) else 0 for c in chats], np.int32),
        counts=np.array([len(c.media) if isinstance(c, Compact) else 0 for c in chats], np.int32),
        media=np.array(media, np.int32),
        found=[(bank.paths[index], bank.known(index)) for index in numbers],
        empty=np.array(
            [isinstance(row, Row) and fine and has_empty_answer(row) for row, fine in zip(rows, good, strict=True)]
        ),
        boxed=np.array(
            [isinstance(row, Row) and fine and _has_boxes(row) for row, fine in zip(rows, good, strict=True)]
        ),
        wrong={number: chat.message for number, chat in enumerate(chats) if isinstance(chat, FinetuneError)},
    )


def _compact(rows: list[Row | FinetuneError], state: _State) -> Iterator[Compact | FinetuneError]:
    """Each row encoded, or what is wrong with it."""
    encoder, ready = state.encoder, []
    has_boxes = state.recipe.box_format is not None
    for row in rows:
        if isinstance(row, Row):
            try:
                encoder.refuse_specials(row)
                if has_boxes:
                    (row,) = place_boxes([row], encoder, state.model_type, state.recipe)
            except FinetuneError as error:
                row = error
        ready.append(row)
    chats = iter(encoder.compact([row for row in ready if isinstance(row, Row)]))
    for row in ready:
        yield next(chats) if isinstance(row, Row) else row


def has_empty_answer(row: Row) -> bool:
    """Whether one of a row's answers says nothing."""
    return any(message["role"] == "assistant" and not _says(message) for message in row.messages)


def _says(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or any(part.get("text", "").strip() for part in message["content"])


def _has_boxes(row: Row) -> bool:
    texts = (part.get("text", "") for message in row.messages for part in message["content"])
    return bool(row.images) and any(next(boxes_in(text), None) is not None for text in texts)
