"""The micro-batch of a dataset that takes the most memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

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
    if recipe.stage == "dpo":
        return _of_pairs(rows, recipe.model_copy(update={"stage": "sft"}), bank, max_pixels, frame_max_pixels)
    limits = bank.limits
    grids = [bank.resized(index, max_pixels, frame_max_pixels) for index in range(len(bank.grids))]
    saved = [bank.tokens(index) - limits.tokens(grid) for index, grid in enumerate(grids)]
    lengths, media = lengths_of(rows).astype(np.int64), media_of(rows)
    if any(saved):
        lengths -= np.array([sum(saved[index] for index in images) for images in media])
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


def _of_pairs(
    rows: Sequence[Encoded], recipe: Recipe, bank: ImageBank, max_pixels: int | None, frame_max_pixels: int | None
) -> MicroBatchLoad:
    longer = [max(split_pair(row), key=len) for row in rows]
    load = heaviest_load(longer, recipe, bank, max_pixels, frame_max_pixels)
    return MicroBatchLoad(
        rows=2 * load.rows,
        tokens=2 * load.tokens,
        labels=heaviest_load(rows, recipe, bank).labels,
        image_tokens=2 * load.image_tokens,
        patches=load.patches,
        largest_image=load.largest_image,
    )
