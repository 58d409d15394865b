"""Rows made ready for training: encoded, filtered by length, split by image and video."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from finetune.data.row_media import Video
from finetune.encoding.cutoff import apply_cutoff
from finetune.encoding.encode_rows import EncodedDatasets, encode_datasets
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import media_of, taken
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.families.base import Reader
from finetune.families.registry import family_of, open_encoder
from finetune.media.bank import Bank
from finetune.media.decoding import broken_media
from finetune.model.folder import open_base
from finetune.recipe.schema import Recipe
from modelfiles import counted

SHOWN_BROKEN = 5
PROVEN_ROWS = 2  # rows whose ids are compared with the processor's own before each run


@dataclass(frozen=True)
class TrainingData(Reader):
    """What a run trains and validates on.

    dropped: rows left out because they are longer than cutoff_len; broken: what is wrong with others, left out too.
    """

    rows: Sequence[Encoded]
    validation: Sequence[Encoded]
    dropped: int
    digest: str
    broken: tuple[str, ...] = ()


def load_training_data(recipe: Recipe, console: Console) -> TrainingData:
    """Reads, checks, encodes and splits the recipe's rows. Raises FinetuneError."""
    folder = open_base(recipe)
    reader = family_of(folder).read(folder, recipe)
    read = _read(str(recipe.dataset), recipe, reader)
    rows, encoded = read.sound(recipe, folder.model_type)
    prove_encoding(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, reader.bank)
    fitting = apply_cutoff(rows, encoded, recipe, reader.encoder)
    kept, dropped, warnings = fitting.kept, fitting.dropped, [*read.parts.notes, fitting.warning(recipe)]
    digest, broken = read.parts.digest, list(read.wrong.values())
    kept_validation: Sequence[Encoded] = []
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        held_out = _read(recipe.eval_dataset, recipe, reader)
        fitting = apply_cutoff(*held_out.sound(recipe, folder.model_type), recipe, reader.encoder)
        kept_validation, dropped = fitting.kept, dropped + fitting.dropped
        digest += held_out.parts.digest
        broken += held_out.wrong.values()
        warnings.append(fitting.warning(recipe))
    for warning in filter(None, [*warnings, skipped(broken)]):
        console.print(f"[yellow]Warning:[/] {escape(warning)}", highlight=False)
    if not kept:
        raise FinetuneError(f"Every row is longer than cutoff_len {recipe.cutoff_len}: raise it, or shrink the images.")
    if recipe.val_size:
        kept, kept_validation = split_by_image(kept, reader.bank.paths, recipe.val_size, recipe.seed)
    return TrainingData(
        folder, reader.processor, reader.bank, reader.encoder, kept, kept_validation, dropped, digest, tuple(broken)
    )


def _read(names: str, recipe: Recipe, reader: Reader) -> EncodedDatasets:
    """The rows of datasets. Raises FinetuneError for the first that is broken, unless they are to be skipped."""
    read = encode(names, recipe, reader)
    if recipe.bad_rows == "error":
        for message in read.wrong.values():
            raise FinetuneError(message)
        return read
    return replace(read, wrong=read.wrong | undecodable(read, reader.bank))


def encode(names: str, recipe: Recipe, reader: Reader) -> EncodedDatasets:
    """The rows of datasets by a reader of the model. Raises FinetuneError if one cannot be read at all."""
    opened = partial(open_encoder, reader.folder, recipe)
    return encode_datasets(names, recipe, reader.encoder, reader.folder.model_type, opened)


def undecodable(read: EncodedDatasets, bank: Bank) -> dict[int, str]:
    """What is wrong with rows whose pixels cannot be decoded, by their number."""
    broken = broken_media(bank)
    found = {}
    for number in range(len(read.table)) if broken else ():
        wrong = next((broken[index] for index in read.table.media(number) if index in broken), None)
        if wrong is not None:
            found[number] = f"{read.rows.source(number)}: {wrong}"
    return found


def skipped(broken: Sequence[str]) -> str:
    """What to say of rows that are left out as they are broken; empty if there are none."""
    if not broken:
        return ""
    more = f"; and {len(broken) - SHOWN_BROKEN:,} more" if len(broken) > SHOWN_BROKEN else ""
    named = "; ".join(message.rstrip(".") for message in broken[:SHOWN_BROKEN])
    return f"{counted(len(broken), 'broken row is', 'broken rows are')} left out (bad_rows: skip): {named}{more}."


def split_by_image(
    rows: Sequence[Encoded], media: Sequence[Path | str | Video], size: float, seed: int
) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
    """(training, validation) rows such that no image, video or frame is on both sides.

    media: the ImageBank's paths; size: a share below 1, or a number of rows; reached as closely from above as the
    groups of rows that share images allow. Raises FinetuneError if nothing would be left to train on.
    """
    wanted = round(size * len(rows)) if size < 1 else int(size)
    leader = array("q", range(len(rows)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first_with: dict[Path | str, int] = {}
    for index, images in enumerate(media_of(rows)):
        for image in images:
            medium = media[image]
            for file in medium.files if isinstance(medium, Video) else (medium,):
                leader[find(index)] = find(first_with.setdefault(file, index))
    leaders = np.fromiter(map(find, range(len(rows))), np.int64, len(rows))
    _, firsts, group_of, sizes = np.unique(leaders, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(firsts).tolist()  # groups by their first row
    random.Random(seed).shuffle(order)
    held_out = np.zeros(len(sizes), dtype=bool)
    count = 0
    for group in order:
        if count >= wanted:
            break
        held_out[group] = True
        count += int(sizes[group])
    if count == len(rows):
        raise FinetuneError(
            f"val_size {size}: no split keeps images apart (the rows form "
            f"{counted(len(sizes), 'group that shares', 'groups that share')} images); "
            "use a smaller val_size, or an eval_dataset of its own."
        )
    chosen = held_out[group_of]
    return taken(rows, np.flatnonzero(~chosen)), taken(rows, np.flatnonzero(chosen))
