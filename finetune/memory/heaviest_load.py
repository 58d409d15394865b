"""The micro-batch of a dataset that takes the most memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from finetune.encoding.encoded import Encoded, split_pair
from finetune.encoding.encoded_rows import labels_of, lengths_of, media_of
from finetune.media.bank import ImageBank
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class MicroBatchLoad:
    """Heaviest micro-batch: rows, tokens (padded, unless rows are packed), label tokens, images' and videos' tokens,
    patches for the tower, and those of its largest image or video (0: not known).

    A pair of answers is two rows, whose images go through the tower once.
    """

    rows: int
    tokens: int
    labels: int
    image_tokens: int
    patches: int
    largest_image: int = 0


def heaviest_load(
    rows: Sequence[Encoded],
    recipe: Recipe,
    bank: ImageBank,
    max_pixels: int | None = None,
    frame_max_pixels: int | None = None,
) -> MicroBatchLoad:
    """The micro-batch with the most tokens that the recipe can make of the rows.

    max_pixels, frame_max_pixels: pixels that an image and a video's frame may have.
    """
    if recipe.stage != "dpo":
        return _heaviest(lengths_of(rows).astype(np.int64), rows, recipe, bank, max_pixels, frame_max_pixels)
    longer = np.fromiter((max(map(len, split_pair(row))) for row in rows), np.int64, len(rows))
    load = _heaviest(longer, rows, recipe, bank, max_pixels, frame_max_pixels)
    return replace(load, rows=2 * load.rows, tokens=2 * load.tokens, image_tokens=2 * load.image_tokens)


def _heaviest(
    lengths: Any,
    rows: Sequence[Encoded],
    recipe: Recipe,
    bank: ImageBank,
    max_pixels: int | None,
    frame_max_pixels: int | None,
) -> MicroBatchLoad:
    """The same of rows of which so many tokens go through the model at once. lengths: [R] int64."""
    limits, media = bank.limits, media_of(rows)
    grids = [bank.resized(index, max_pixels, frame_max_pixels) for index in range(len(bank.grids))]
    saved = np.array([bank.tokens(index) - limits.tokens(grid) for index, grid in enumerate(grids)], np.int64)
    if saved.any():
        lengths = lengths - np.bincount(media.rows, saved[media.flat], minlength=len(rows)).astype(np.int64)
    size = min(recipe.batch_size, len(rows))
    heaviest = np.argsort(-lengths, kind="stable")[:size].tolist()
    images = [image for number in heaviest for image in media[number]]
    return MicroBatchLoad(
        rows=size,
        tokens=int(lengths[heaviest].sum()) if recipe.packing else size * int(lengths[heaviest[0]]),
        labels=int(np.sort(labels_of(rows))[-size:].sum()),
        image_tokens=sum(limits.tokens(grids[image]) for image in images),
        patches=sum(prod(grids[image]) for image in set(images)),
        largest_image=max((prod(grids[image]) for image in images), default=0),
    )
