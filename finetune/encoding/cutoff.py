"""Rows that are longer than cutoff_len: left out, refused, or made shorter by smaller images and frames.

Nothing is ever cut: half an image's tokens make the model fail, half an answer teaches it to stop in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.formats import Row
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of, replaced, taken
from finetune.encoding.encoder import Encoder
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles import counted


@dataclass(frozen=True)
class CutoffResult:
    """Rows that fit, in order.

    longest: tokens of the longest row before any was left out; longest_images: those of them that are image or video
    tokens; videos: whether that row has videos; resizes: whether this family's images can be made smaller.
    """

    kept: Sequence[Encoded]
    dropped: int
    shrunk: int
    longest: int
    longest_images: int
    videos: bool
    resizes: bool

    def warning(self, recipe: Recipe) -> str:
        """What happened to rows that are too long, and what to change; empty if all fit."""
        if not self.dropped and not self.shrunk:
            return ""
        what = "images and videos" if self.videos else "images"
        share = f"the longest has {self.longest} tokens, {self.longest_images} of them {what}'"
        if self.shrunk:
            left_out = f", {self.dropped} are left out as they are too long even so" if self.dropped else ""
            return (
                f"the {what} of {counted(self.shrunk, 'row')} are shrunk to fit cutoff_len {recipe.cutoff_len} "
                f"({share}){left_out}; a server will see such {what} larger than training did."
            )
        remedy = f"set cutoff_len: {self.longest}"
        keys = "video_max_pixels or video_maxlen" if self.videos else "image_max_pixels"
        if self.longest_images and self.resizes:
            remedy += f", a smaller {keys}, or cutoff_policy: shrink"
        return (
            f"{self.dropped} of {counted(self.dropped + len(self.kept), 'row is', 'rows are')} longer than cutoff_len "
            f"{recipe.cutoff_len} "
            f"({share}) and are left out; {remedy}."
        )


def apply_cutoff(rows: Sequence[Row], encoded: Sequence[Encoded], recipe: Recipe, encoder: Encoder) -> CutoffResult:
    """Applies cutoff_policy to rows and their encodings. Raises FinetuneError if that refuses a row."""
    lengths = lengths_of(encoded)
    long = np.flatnonzero(lengths > recipe.cutoff_len).tolist()
    dropped: list[int] = []
    smaller: dict[int, Encoded] = {}
    resizes = isinstance(encoder, ChatEncoder)
    longest = encoded[int(np.argmax(lengths))]
    videos = bool((longest.ids == encoder.video_token_id).any())
    images = int(np.isin(longest.ids, (encoder.image_token_id, encoder.video_token_id)).sum())
    for number in long:
        if recipe.cutoff_policy == "error":
            keys = "video_max_pixels" if rows[number].videos else "image_max_pixels"
            lower = f"lower {keys}, or set cutoff_policy: drop or shrink" if resizes else "or drop such rows"
            raise FinetuneError(
                f"{rows[number].source}: the row has {lengths[number]} tokens, over cutoff_len {recipe.cutoff_len} "
                f"({counted(len(long), 'such row')}); raise cutoff_len, {lower}."
            )
        fitting = None
        if recipe.cutoff_policy == "shrink" and isinstance(encoder, ChatEncoder):
            fitting = _shrink(rows[number], encoded[number], recipe.cutoff_len, encoder)
        if fitting is None:
            dropped.append(number)
        else:
            smaller[number] = fitting
    kept = replaced(encoded, smaller)
    if dropped:
        kept = taken(kept, np.setdiff1d(np.arange(len(kept)), dropped))
    return CutoffResult(kept, len(dropped), len(smaller), len(longest), images, videos, resizes)


def _shrink(row: Row, whole: Encoded, cutoff: int, encoder: ChatEncoder) -> Encoded | None:
    """The row encoded with the largest images and frames that let it fit; None if the smallest do not."""
    bank, limits = encoder.bank, encoder.bank.limits
    pixels = (limits.patch * limits.merge) ** 2  # of a token
    text = len(whole) - sum(bank.tokens(index) for index in whole.images)
    smallest = -(-limits.min_pixels // pixels)
    low, high, fits = smallest, limits.max_pixels // pixels, 0
    if row.videos:  # frames have no smallest size of their own
        low = smallest if row.images else 1
        high = max(high, *(limits.tokens((1, *bank.grids[index][1:])) for index in whole.images))
    while low <= high:
        middle = (low + high) // 2
        max_pixels = middle * pixels
        if text + sum(limits.tokens(bank.resized(index, max_pixels, max_pixels)) for index in whole.images) <= cutoff:
            fits, low = middle, middle + 1
        else:
            high = middle - 1
    return encoder.encode([row], max_pixels=fits * pixels)[0] if fits else None
