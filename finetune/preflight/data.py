"""What `check` says of a recipe's data as the model reads it: lengths in tokens, labels, what is held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.markup import escape

from finetune.encoding.cutoff import apply_cutoff
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import labels_of, lengths_of
from finetune.encoding.proof import prove_encoding
from finetune.families.base import Reader
from finetune.media.bank import Bank, ImageBank
from finetune.preflight.box_drawings import describe_boxes
from finetune.preflight.preview import describe_pairs, histogram, preview
from finetune.preflight.report import Report
from finetune.preflight.rows import broken_rows, describe_broken, describe_rows, say_nothing_is_left
from finetune.recipe.schema import Recipe
from finetune.training.dataset import PROVEN_ROWS, encode, split_by_image, undecodable
from finetune.training.optim import total_steps
from modelfiles import counted

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Checked:
    """The rows that a run would train on, and their images."""

    bank: Bank
    rows: Sequence[Encoded]


def check_data(recipe: Recipe, reader: Reader, report: Report, decoded: bool) -> Checked:
    """Reads every row and prints what is in them and what is wrong with them. Raises FinetuneError.

    decoded: whether all pixels are read too.
    """
    bank, model_type = reader.bank, reader.folder.model_type
    read = encode(str(recipe.dataset), recipe, reader)
    validates = recipe.eval_dataset and recipe.eval_strategy != "no"
    held_out = [encode(str(recipe.eval_dataset), recipe, reader)] if validates else []
    if decoded:
        wrong = [undecodable(each, bank) for each in (read, *held_out)]
        report.say(
            f"{counted(len(bank.paths), 'image or video was', 'images and videos were')} read; "
            f"{counted(sum(map(len, wrong)), 'row has', 'rows have')} a broken one."
        )
        read, *held_out = (
            replace(each, wrong=each.wrong | found) for each, found in zip((read, *held_out), wrong, strict=True)
        )
    describe_broken(
        (found for each in (read, *held_out) for found in broken_rows(each.rows, each.wrong)), recipe, report
    )
    for note in (note for each in (read, *held_out) for note in each.parts.notes):
        report.say(escape(note))
    if len(read.wrong) == len(read.rows):
        say_nothing_is_left(report)
        return Checked(bank, [])
    rows, encoded = read.sound(recipe, model_type)
    prove_encoding(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, bank)
    sizes = [size for index, size in enumerate(bank.sizes) if index not in bank.clips]
    empty = [read.rows.source(number) for number in encoded.at[read.table.empty[encoded.at]].tolist()]
    describe_rows(read.rows.take(encoded.at).sources(), sizes, empty, report)
    if isinstance(bank, ImageBank):
        _describe_resizing(bank, recipe, report)
    describe_boxes(rows, np.flatnonzero(read.table.boxed[encoded.at]), reader, recipe, report)
    longest = int(encoded.lengths.max())  # before images are made smaller
    report.console.print(histogram(encoded.lengths, recipe.cutoff_len))
    fitting = apply_cutoff(rows, encoded, recipe, reader.encoder)
    if fitting.warning(recipe):
        report.warn(fitting.warning(recipe))
    kept = fitting.kept
    if kept and recipe.val_size:
        kept, validation = split_by_image(kept, bank.paths, recipe.val_size, recipe.seed)
        seen = "image or video" if bank.clips else "image"
        report.say(f"{counted(len(validation), 'row is', 'rows are')} held out, no {seen} of theirs is trained on")
    if kept and recipe.stage == "dpo":
        describe_pairs(kept, report)
    learnt = "what is learnt" if recipe.stage == "sft" else "the chosen and then the rejected answer"
    report.say(f"Labels, {learnt}, are [green]green[/]:")
    for row in encoded[:SHOWN_ROWS]:
        report.say(preview(row, reader.encoder, reader.processor.tokenizer))
    report.say(
        f"{counted(len(kept), 'row')}, {lengths_of(kept).sum(dtype=int):,} tokens of which "
        f"{labels_of(kept).sum(dtype=int):,} are labels; {counted(total_steps(recipe, len(kept)), 'step')} of up to "
        f"{counted(recipe.batch_size * recipe.gradient_accumulation_steps, 'row')}"
    )
    report.figures["data"] = {
        "rows": len(rows),
        "kept": len(kept),
        "longest_tokens": longest,
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
            f"{counted(len(counts), 'video')}, {min(counts)} to {counted(max(counts), 'frame each', 'frames each')} of "
            f"up to {pixels:,} pixels, {recipe.video_fps:g} a second and {recipe.video_maxlen} at most"
        )
