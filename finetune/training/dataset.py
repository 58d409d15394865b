"""Rows made ready for training: encoded, filtered by length, split by image and video."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.data.row_media import Video
from finetune.encoding.boxes import place_boxes
from finetune.encoding.cutoff import apply_cutoff
from finetune.encoding.encoded import Encoded
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.families.base import Reader
from finetune.families.registry import family_of
from finetune.model.folder import open_base
from finetune.recipe.schema import Recipe

PROVEN_ROWS = 2  # rows whose ids are compared with the processor's own before each run


@dataclass(frozen=True)
class TrainingData(Reader):
    """What a run trains and validates on. dropped: rows left out because they are longer than cutoff_len."""

    rows: list[Encoded]
    validation: list[Encoded]
    dropped: int
    digest: str


def load_training_data(recipe: Recipe, console: Console) -> TrainingData:
    """Reads, checks, encodes and splits the recipe's rows. Raises FinetuneError."""
    folder = open_base(recipe)
    reader = family_of(folder).read(folder, recipe)
    data = load_rows(str(recipe.dataset), recipe)
    bank, encoder = reader.bank, reader.encoder
    rows = place_boxes(data.rows, encoder, folder.model_type, recipe)
    encoded = encoder.encode(rows)
    prove_encoding(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, bank)
    fitting = apply_cutoff(rows, encoded, recipe, encoder)
    kept, dropped, warnings = fitting.kept, fitting.dropped, [*data.notes, fitting.warning(recipe)]
    digest, kept_validation = data.digest, []
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        held_out = load_rows(recipe.eval_dataset, recipe)
        rows = place_boxes(held_out.rows, encoder, folder.model_type, recipe)
        fitting = apply_cutoff(rows, encoder.encode(rows), recipe, encoder)
        kept_validation, dropped = fitting.kept, dropped + fitting.dropped
        digest += held_out.digest
        warnings.append(fitting.warning(recipe))
    for warning in filter(None, warnings):
        console.print(f"[yellow]Warning:[/] {warning}", highlight=False)
    if not kept:
        raise FinetuneError(f"Every row is longer than cutoff_len {recipe.cutoff_len}: raise it, or shrink the images.")
    if recipe.val_size:
        kept, kept_validation = split_by_image(kept, bank.paths, recipe.val_size, recipe.seed)
    return TrainingData(folder, reader.processor, bank, encoder, kept, kept_validation, dropped, digest)


def split_by_image(
    rows: Sequence[Encoded], media: Sequence[Path | str | Video], size: float, seed: int
) -> tuple[list[Encoded], list[Encoded]]:
    """(training, validation) rows such that no image, video or frame is on both sides.

    media: the ImageBank's paths; size: a share below 1, or a number of rows; reached as closely from above as the
    groups of rows that share images allow. Raises FinetuneError if nothing would be left to train on.
    """
    wanted = round(size * len(rows)) if size < 1 else int(size)
    leader = list(range(len(rows)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first_with: dict[Path | str, int] = {}
    for index, row in enumerate(rows):
        for image in row.images:
            medium = media[image]
            for file in medium.files if isinstance(medium, Video) else (medium,):
                leader[find(index)] = find(first_with.setdefault(file, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(rows)):
        groups.setdefault(find(index), []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    chosen: set[int] = set()
    for group in order:
        if len(chosen) >= wanted:
            break
        chosen.update(group)
    if len(chosen) == len(rows):
        raise FinetuneError(
            f"val_size {size}: no split keeps images apart (the rows form {len(groups)} groups that share images); "
            "use a smaller val_size, or an eval_dataset of its own."
        )
    return (
        [row for index, row in enumerate(rows) if index not in chosen],
        [row for index, row in enumerate(rows) if index in chosen],
    )
