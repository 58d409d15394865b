"""What `check` can say of a recipe's data without the model's folder: rows, images, and lengths by estimate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.data.formats import Row
from finetune.data.row_media import shown
from finetune.errors import FinetuneError
from finetune.media.image_files import image_size
from finetune.media.pixel_limits import PixelLimits
from finetune.preflight.preview import histogram
from finetune.preflight.report import Report
from finetune.preflight.rows import describe_rows, sound_rows
from finetune.recipe.schema import Recipe

CHARACTERS = 4  # of English text in a token, about
TURN = 5  # tokens that a template writes around a turn, about
MAX_PIXELS = 16384 * 32 * 32  # what Qwen3-VL's processor allows an image, unless the recipe says less


def check_without_model(recipe: Recipe, report: Report) -> None:
    """Reads every row and prints what is in them, lengths in tokens as Qwen3-VL would have them.

    Raises FinetuneError if the data cannot be read.
    """
    limits = assumed_limits(recipe)
    images: dict[Path | str, tuple[int, int]] = {}

    def check(row: Row) -> None:
        for image in row.images:
            try:
                images[image] = images.get(image) or image_size(image)
                limits.grid(*images[image])
            except ValueError as error:
                raise FinetuneError(f"{row.source}: the image {shown(image)}: {error}.") from None

    rows = sound_rows(recipe, report, check)
    if not rows:
        report.say("No row can be trained on.")
        if not report.problems:
            report.error("no row can be trained on.", hidden=True)
        return
    describe_rows(rows, list(images.values()), report)
    lengths = [estimate_tokens(row, images, limits) for row in rows]
    report.say("Lengths without the model are estimates, as for Qwen3-VL and English text:")
    report.console.print(histogram(lengths, recipe.cutoff_len))
    long = sum(length > recipe.cutoff_len for length in lengths)
    if long:
        report.warn(
            f"about {long:,} of {len(rows):,} rows are longer than cutoff_len {recipe.cutoff_len} (the longest has "
            f"about {max(lengths):,} tokens) and would be left out; raise cutoff_len or lower image_max_pixels."
        )


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
