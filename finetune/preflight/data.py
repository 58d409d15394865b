"""What `check` says of a recipe's data: rows that cannot be used, lengths in tokens, labels."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from finetune.data.datasets import dataset_names, mix, read_rows
from finetune.data.formats import Row
from finetune.encoding.cutoff import apply_cutoff
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoder import Encoder
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.families.registry import family_of
from finetune.media.bank import Bank, ImageBank
from finetune.model.folder import open_base
from finetune.preflight.preview import histogram, preview
from finetune.recipe.schema import Recipe
from finetune.training.dataset import PROVEN_ROWS, split_by_image
from finetune.training.optim import total_steps
from modelfiles.folder.model_folder import ModelFolder

SHOWN_PROBLEMS = 20
SHOWN_ROWS = 3
ROW = re.compile(r", row \d+(, turn \d+)?")  # what differs between the messages of rows that are broken alike


@dataclass(frozen=True)
class Checked:
    """What a run would train on; problems: whether anything would keep it from starting."""

    folder: ModelFolder
    bank: Bank
    rows: list[Encoded]
    problems: bool


def check_data(recipe: Recipe, console: Console) -> Checked:
    """Reads every row and prints what is in them and what is wrong with them."""
    folder = open_base(recipe)
    reader = family_of(folder).read(folder, recipe)
    bank, encoder = reader.bank, reader.encoder
    notes: list[str] = []
    rows, problems = _sound_rows(str(recipe.dataset), recipe, encoder, notes)
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        problems += _sound_rows(recipe.eval_dataset, recipe, encoder, notes)[1]
    _print_problems(problems, console)
    for note in notes:
        console.print(escape(note), highlight=False)
    if not rows:
        return Checked(folder, bank, [], True)

    encoded: list[Encoded] = list(encoder.encode(rows))
    prove_encoding(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, bank)
    for source, count in Counter(row.source.rpartition(", row ")[0] for row in rows).items():
        console.print(f"{source}: {count:,} rows", highlight=False)
    images = len(bank.paths) - len(bank.clips)
    limits = (
        f", {bank.limits.min_pixels:,} to {bank.limits.max_pixels:,} pixels each" if isinstance(bank, ImageBank) else ""
    )
    console.print(f"{images:,} images{limits}", highlight=False)
    if isinstance(bank, ImageBank) and bank.clips:
        counts = [len(clip.indices) for clip in bank.clips.values()]
        pixels = max(math.prod(bank.grids[index][1:]) for index in bank.clips) * bank.limits.patch**2
        console.print(
            f"{len(counts):,} videos, {min(counts)} to {max(counts)} frames each of up to {pixels:,} pixels, "
            f"{recipe.video_fps:g} a second and {recipe.video_maxlen} at most",
            highlight=False,
        )
    empty = [row.source for row in rows if any(m["role"] == "assistant" and not _says(m) for m in row.messages)]
    if empty:
        console.print(
            f"[yellow]Warning:[/] {len(empty):,} rows have an empty answer, which teaches to say nothing: {empty[0]}.",
            highlight=False,
        )
    console.print(histogram([len(row) for row in encoded], recipe.cutoff_len))
    try:
        fitting = apply_cutoff(rows, encoded, recipe, encoder)
    except FinetuneError as error:
        console.print(f"[red]Error:[/] {escape(error.message)}", highlight=False)
        return Checked(folder, bank, encoded, True)
    if fitting.warning(recipe):
        console.print(f"[yellow]Warning:[/] {fitting.warning(recipe)}", highlight=False)
    kept = fitting.kept
    if kept and recipe.val_size:
        kept, validation = split_by_image(kept, bank.paths, recipe.val_size, recipe.seed)
        seen = "image or video" if bank.clips else "image"
        console.print(f"{len(validation):,} rows are held out, no {seen} of theirs is trained on", highlight=False)
    console.print("What is learnt is [green]green[/]:")
    for row in encoded[:SHOWN_ROWS]:
        console.print(preview(row, encoder, reader.processor.tokenizer), highlight=False)
    labels = sum(int(row.labelled.sum()) for row in kept)
    console.print(
        f"{len(kept):,} rows, {sum(map(len, kept)):,} tokens of which {labels:,} are learnt; "
        f"{total_steps(recipe, len(kept)):,} steps of up to "
        f"{recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps} rows",
        highlight=False,
    )
    return Checked(folder, bank, kept, bool(problems))


def _print_problems(problems: list[FinetuneError], console: Console) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        console.print(f"[red]Error:[/] {escape(problem.message)}", highlight=False)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"[red]Error:[/] ... and {len(problems) - SHOWN_PROBLEMS} more broken rows.", highlight=False)


def _says(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or any(part.get("text", "").strip() for part in message["content"])


def _sound_rows(
    names: str, recipe: Recipe, encoder: Encoder, notes: list[str]
) -> tuple[list[Row], list[FinetuneError]]:
    """The rows that can be used, and what is wrong with the others.

    Rows that are written wrongly in the same way are one problem: the first of them, and how many more. notes: gets the
    fields that are not used.
    """
    datasets: list[list[Row]] = []
    problems: dict[str, list[str]] = {}
    for name in dataset_names(names):
        rows = []
        for row in read_rows(name, recipe, hashlib.sha256(), notes):
            if isinstance(row, FinetuneError):
                problems.setdefault(ROW.sub("", row.message), []).append(row.message)
                continue
            try:
                encoder.refuse_specials(row)
                encoder.add_media(row)
            except FinetuneError as error:
                problems.setdefault(error.message, []).append(error.message)
            else:
                rows.append(row)
        if rows:
            datasets.append(rows)
    found = [
        FinetuneError(messages[0] + (f" ({len(messages) - 1:,} more rows like it.)" if len(messages) > 1 else ""))
        for messages in problems.values()
    ]
    return mix(datasets, recipe) if datasets else [], found
