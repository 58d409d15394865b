"""What `check` can say of a recipe's data without the model's folder: rows, images, and lengths by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.markup import escape

from finetune.data.datasets import read_datasets
from finetune.data.formats import Row
from finetune.data.row_media import shown
from finetune.encoding.encode_rows import has_empty_answer
from finetune.errors import FinetuneError
from finetune.media.image_files import image_size
from finetune.media.pixel_limits import PixelLimits
from finetune.preflight.preview import histogram
from finetune.preflight.report import Report
from finetune.preflight.rows import broken_rows, describe_broken, describe_rows, say_nothing_is_left
from finetune.recipe.schema import Recipe
from modelfiles import counted

CHARACTERS = 4  # of English text in a token, about
TURN = 5  # tokens that a template writes around a turn, about
MAX_PIXELS = 16384 * 32 * 32  # what Qwen3-VL's processor allows an image, unless the recipe says less


def check_without_model(recipe: Recipe, report: Report) -> None:
    """Reads every row and prints what is in them, lengths in tokens as Qwen3-VL would have them.

    Raises FinetuneError if the data cannot be read.
    """
    limits = assumed_limits(recipe)
    images: dict[Path | str, tuple[int, int]] = {}
    parts = read_datasets(str(recipe.dataset), recipe)
    rows = parts.together
    wrong: dict[int, str] = {}
    empty: list[str] = []
    tokens = np.zeros(len(rows), np.int64)
    for number, row in enumerate(rows):
        try:
            tokens[number] = _tokens(row, images, limits)
        except FinetuneError as error:
            wrong[number] = error.message
            continue
        if has_empty_answer(row):
            empty.append(row.source)
    broken = list(broken_rows(rows, wrong))
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        held_out, unsound = read_datasets(recipe.eval_dataset, recipe).together, {}
        for number, row in enumerate(held_out):
            try:
                _tokens(row, images, limits)
            except FinetuneError as error:
                unsound[number] = error.message
        broken += broken_rows(held_out, unsound)
    describe_broken(broken, recipe, report)
    for note in parts.notes:
        report.say(escape(note))
    if len(wrong) == len(rows):
        say_nothing_is_left(report)
        return
    sound = np.ones(len(rows), dtype=bool)
    sound[list(wrong)] = False
    order = parts.mixed(sound, recipe)
    describe_rows(rows.take(order).sources(), list(images.values()), empty, report)
    lengths = tokens[order]
    report.say("Lengths without the model are estimates, as for Qwen3-VL and English text:")
    report.console.print(histogram(lengths, recipe.cutoff_len))
    long = int((lengths > recipe.cutoff_len).sum())
    if long:
        report.warn(
            f"about {long:,} of {counted(len(lengths), 'row is', 'rows are')} longer than cutoff_len "
            f"{recipe.cutoff_len} (the longest has about {lengths.max():,} tokens) and would be left out; "
            "raise cutoff_len or lower image_max_pixels."
        )


def _tokens(row: Row | FinetuneError, images: dict[Path | str, tuple[int, int]], limits: PixelLimits) -> int:
    """About how many tokens a row has. images: gets the sizes of its own. Raises FinetuneError if it is broken."""
    if isinstance(row, FinetuneError):
        raise row
    for image in row.images:
        try:
            images[image] = images.get(image) or image_size(image)
            limits.grid(*images[image])
        except ValueError as error:
            raise FinetuneError(f"{row.source}: the image {shown(image)}: {error}.") from None
    return estimate_tokens(row, images, limits)


def say_how_many_images_fit(recipe: Recipe, report: Report) -> None:
    """What cutoff_len holds, which needs neither a model nor data."""
    limits = assumed_limits(recipe)
    tokens = limits.max_pixels // (limits.patch * limits.merge) ** 2
    report.say(
        f"An image of image_max_pixels {limits.max_pixels:,} has {tokens:,} tokens in Qwen3-VL; "
        f"cutoff_len {recipe.cutoff_len} holds {recipe.cutoff_len // tokens} of them and their text."
    )


def assumed_limits(recipe: Recipe) -> PixelLimits:
    """Qwen3-VL's pixel limits, narrowed by the recipe's."""
    return PixelLimits(16, 2, recipe.image_min_pixels or 1, recipe.image_max_pixels or MAX_PIXELS)


def estimate_tokens(row: Row, images: Mapping[Path | str, tuple[int, int]], limits: PixelLimits) -> int:
    """About how many tokens a row has; its videos are not counted."""
    texts = sum(len(part.get("text", "")) for message in row.messages for part in message["content"])
    pictures = sum(limits.tokens(limits.grid(*images[image])) + 2 for image in row.images)
    return texts // CHARACTERS + TURN * len(row.messages) + pictures
