"""What `check` says of a recipe's data as the model reads it: lengths in tokens, labels, what is held out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune.data.formats import Row
from finetune.encoding.boxes import place_boxes
from finetune.encoding.cutoff import apply_cutoff
from finetune.encoding.encoded import Encoded
from finetune.encoding.proof import prove_encoding
from finetune.families.base import Reader
from finetune.media.bank import Bank, ImageBank
from finetune.preflight.box_drawings import describe_boxes
from finetune.preflight.preview import describe_pairs, histogram, preview
from finetune.preflight.report import Report
from finetune.preflight.rows import describe_rows, sound_rows
from finetune.recipe.schema import Recipe
from finetune.training.dataset import PROVEN_ROWS, split_by_image
from finetune.training.optim import total_steps

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Checked:
    """The rows that a run would train on, and their images."""

    bank: Bank
    rows: list[Encoded]


def check_data(recipe: Recipe, reader: Reader, report: Report) -> Checked:
    """Reads every row and prints what is in them and what is wrong with them. Raises FinetuneError."""
    bank, encoder = reader.bank, reader.encoder

    def check(row: Row) -> None:
        encoder.refuse_specials(row)
        place_boxes([row], encoder, reader.folder.model_type, recipe)
        encoder.add_media(row)

    rows = sound_rows(recipe, report, check)
    if not rows:
        report.say("No row can be trained on.")
        if not report.problems:
            report.error("no row can be trained on.", hidden=True)
        return Checked(bank, [])
    rows = place_boxes(rows, encoder, reader.folder.model_type, recipe)
    encoded: list[Encoded] = list(encoder.encode(rows))
    prove_encoding(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, bank)
    describe_rows(rows, [size for index, size in enumerate(bank.sizes) if index not in bank.clips], report)
    if isinstance(bank, ImageBank):
        _describe_resizing(bank, recipe, report)
    describe_boxes(rows, reader, recipe, report)
    lengths = [len(row) for row in encoded]
    report.console.print(histogram(lengths, recipe.cutoff_len))
    fitting = apply_cutoff(rows, encoded, recipe, encoder)
    if fitting.warning(recipe):
        report.warn(fitting.warning(recipe))
    kept = fitting.kept
    if kept and recipe.val_size:
        kept, validation = split_by_image(kept, bank.paths, recipe.val_size, recipe.seed)
        seen = "image or video" if bank.clips else "image"
        report.say(f"{len(validation):,} rows are held out, no {seen} of theirs is trained on")
    if kept and recipe.stage == "dpo":
        describe_pairs(kept, report)
    learnt = "what is learnt" if recipe.stage == "sft" else "the chosen and then the rejected answer"
    report.say(f"Labels, {learnt}, are [green]green[/]:")
    for row in encoded[:SHOWN_ROWS]:
        report.say(preview(row, encoder, reader.processor.tokenizer))
    labels = sum(int(row.labelled.sum()) for row in kept)
    report.say(
        f"{len(kept):,} rows, {sum(map(len, kept)):,} tokens of which {labels:,} are labels; "
        f"{total_steps(recipe, len(kept)):,} steps of up to "
        f"{recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps} rows"
    )
    report.figures["data"] = {
        "rows": len(rows),
        "kept": len(kept),
        "longest_tokens": max(lengths),
        "steps": total_steps(recipe, len(kept)),
    }
    if not kept:
        report.say("No row can be trained on.")
        report.error("no row can be trained on: every one is longer than cutoff_len.", hidden=True)
    return Checked(bank, kept)


def _describe_resizing(bank: ImageBank, recipe: Recipe, report: Report) -> None:
    """Prints the sizes in which the model gets images, and the frames that are taken of videos."""
    grids = [grid[1:] for index, grid in enumerate(bank.grids) if index not in bank.clips]
    patch = bank.limits.patch
    if grids:
        low, high = min(grids, key=math.prod), max(grids, key=math.prod)
        span = f" to {high[1] * patch}x{high[0] * patch}" if low != high else ""
        report.say(
            f"The model gets them as {low[1] * patch}x{low[0] * patch}{span} pixels "
            f"({bank.limits.min_pixels:,} to {bank.limits.max_pixels:,} pixels are allowed)"
        )
    if bank.clips:
        counts = [len(clip.indices) for clip in bank.clips.values()]
        pixels = max(math.prod(bank.grids[index][1:]) for index in bank.clips) * patch**2
        report.say(
            f"{len(counts):,} videos, {min(counts)} to {max(counts)} frames each of up to {pixels:,} pixels, "
            f"{recipe.video_fps:g} a second and {recipe.video_maxlen} at most"
        )
