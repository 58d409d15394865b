"""Rows that are longer than cutoff_len: left out, refused, or made shorter by smaller images.

Nothing is ever cut: half an image's tokens make the model fail, half an answer teaches it to stop in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune.errors import FinetuneError
from finetune.family import Encoder
from finetune.formats import Row
from finetune.recipe import Recipe
from finetune.template import ChatEncoder, Encoded


@dataclass(frozen=True)
class Cut:
    """Rows that fit, in order. longest: tokens of the longest row before, of which longest_images are images'.

    resizes: whether images can be made smaller, which only the Qwen-VL families' can.
    """

    kept: list[Encoded]
    dropped: int
    shrunk: int
    longest: int
    longest_images: int
    resizes: bool

    def warning(self, recipe: Recipe) -> str:
        """What happened to rows that are too long, and what to change; empty if all fit."""
        if not self.dropped and not self.shrunk:
            return ""
        share = f"the longest has {self.longest} tokens, {self.longest_images} of them images'"
        if self.shrunk:
            left_out = f", {self.dropped} are left out as they are too long even so" if self.dropped else ""
            return (
                f"the images of {self.shrunk} rows are shrunk to fit cutoff_len {recipe.cutoff_len} ({share})"
                f"{left_out}; a server will see such images larger than training did."
            )
        remedy = f"set cutoff_len: {self.longest}"
        remedy += (
            ", a smaller image_max_pixels, or cutoff_policy: shrink" if self.longest_images and self.resizes else ""
        )
        return (
            f"{self.dropped} of {self.dropped + len(self.kept)} rows are longer than cutoff_len {recipe.cutoff_len} "
            f"({share}) and are left out; {remedy}."
        )


def cut(rows: Sequence[Row], encoded: Sequence[Encoded], recipe: Recipe, encoder: Encoder) -> Cut:
    """Applies cutoff_policy to rows and their encodings. Raises FinetuneError if that refuses a row."""
    kept: list[Encoded] = []
    dropped = shrunk = 0
    resizes = isinstance(encoder, ChatEncoder)
    longest = max(encoded, key=len)
    images = int((longest.ids == encoder.image_token_id).sum())
    for row, whole in zip(rows, encoded, strict=True):
        if len(whole) <= recipe.cutoff_len:
            kept.append(whole)
            continue
        if recipe.cutoff_policy == "error":
            lower = "lower image_max_pixels, or set cutoff_policy: drop or shrink" if resizes else "or drop such rows"
            raise FinetuneError(
                f"{whole.source}: the row has {len(whole)} tokens, over cutoff_len {recipe.cutoff_len} "
                f"({sum(len(other) > recipe.cutoff_len for other in encoded)} such rows); raise cutoff_len, {lower}."
            )
        smaller = None
        if recipe.cutoff_policy == "shrink" and isinstance(encoder, ChatEncoder):
            smaller = _shrink(row, whole, recipe.cutoff_len, encoder)
        if smaller is None:
            dropped += 1
        else:
            shrunk += 1
            kept.append(smaller)
    return Cut(kept, dropped, shrunk, len(longest), images, resizes)


def _shrink(row: Row, whole: Encoded, cutoff: int, encoder: ChatEncoder) -> Encoded | None:
    """The row with its larger images of as many pixels as let it fit, or None if the model's least are too many."""
    bank, limits = encoder.bank, encoder.bank.limits
    pixels = (limits.patch * limits.merge) ** 2  # of a token
    text = len(whole) - sum(bank.tokens(index) for index in whole.images)
    low, high, fits = -(-limits.least // pixels), limits.most // pixels, 0
    while low <= high:
        middle = (low + high) // 2
        tried = replace(limits, most=middle * pixels)
        if text + sum(tried.tokens(tried.grid(*bank.sizes[index])) for index in whole.images) <= cutoff:
            fits, low = middle, middle + 1
        else:
            high = middle - 1
    return encoder.encode([row], most=fits * pixels)[0] if fits else None
