"""Reads all that a training run would read, without a GPU and without decoding an image, and says what it would do."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.dataset import PROVEN_ROWS, split_by_image
from finetune.errors import FinetuneError
from finetune.formats import Row
from finetune.images import ImageBank, pixel_limits
from finetune.model import open_base, pick_device, pick_dtype
from finetune.processor import load_processor
from finetune.recipe import Recipe
from finetune.rows import read_rows
from finetune.schedule import total_steps
from finetune.template import ChatEncoder, Encoded, prove

SHOWN_PROBLEMS = 20
SHOWN_ROWS = 3
BARS = 10


def check(recipe: Recipe, console: Console | None = None) -> bool:
    """Prints what training would do; whether it would start. Raises FinetuneError if that cannot be found out."""
    console = console or Console(soft_wrap=True)
    recipe.require("dataset", "output_dir")
    folder = open_base(recipe)
    limits = pixel_limits(folder, recipe)
    processor = load_processor(folder, limits)
    bank = ImageBank(limits)
    encoder = ChatEncoder(folder, processor, bank)
    rows, problems = _sound_rows(str(recipe.dataset), recipe, encoder)
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        problems += _sound_rows(recipe.eval_dataset, recipe, encoder)[1]
    for problem in problems[:SHOWN_PROBLEMS]:
        console.print(f"[red]Error:[/] {escape(problem.message)}", highlight=False)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"[red]Error:[/] ... and {len(problems) - SHOWN_PROBLEMS} more broken rows.", highlight=False)
    if not rows:
        console.print("No row can be trained on.")
        return False

    encoded = encoder.encode(rows)
    prove(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], processor, bank)
    kept = [row for row in encoded if len(row) <= recipe.cutoff_len]
    for source, count in Counter(row.source.rpartition(", row ")[0] for row in rows).items():
        console.print(f"{source}: {count:,} rows", highlight=False)
    console.print(f"{len(bank.paths):,} images, {limits.least:,} to {limits.most:,} pixels each", highlight=False)
    console.print(_histogram([len(row) for row in encoded], recipe.cutoff_len))
    if len(kept) < len(encoded):
        console.print(
            f"[yellow]Warning:[/] {len(encoded) - len(kept):,} rows are longer than cutoff_len {recipe.cutoff_len} and "
            "would be left out; rows and images are never cut.",
            highlight=False,
        )
    if not kept:
        return False
    if recipe.val_size:
        kept, validation = split_by_image(kept, recipe.val_size, recipe.seed)
        console.print(f"{len(validation):,} rows are held out, no image of theirs is trained on", highlight=False)
    console.print("What is learnt is [green]green[/]:")
    for row in encoded[:SHOWN_ROWS]:
        console.print(_preview(row, encoder.image_token_id, processor.tokenizer), highlight=False)
    micro = -(-len(kept) // recipe.per_device_train_batch_size)
    labels = sum(int(row.learnt.sum()) for row in kept)
    console.print(
        f"{len(kept):,} rows, {sum(map(len, kept)):,} tokens of which {labels:,} are learnt; "
        f"{total_steps(recipe, micro):,} steps of up to "
        f"{recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps} rows",
        highlight=False,
    )
    _, reason = pick_dtype(recipe, pick_device())
    console.print(f"Compute dtype {reason}", highlight=False)
    return not problems


def _sound_rows(names: str, recipe: Recipe, encoder: ChatEncoder) -> tuple[list[Row], list[FinetuneError]]:
    """The rows that can be used, and what is wrong with the others."""
    rows: list[Row] = []
    problems: list[FinetuneError] = []
    for row in read_rows(names, recipe, hashlib.sha256()):
        if isinstance(row, FinetuneError):
            problems.append(row)
            continue
        try:
            encoder.refuse_specials(row)
            for path in row.images:
                encoder.bank.add(path, row.source)
        except FinetuneError as error:
            problems.append(error)
        else:
            rows.append(row)
    return rows, problems


def _histogram(lengths: Sequence[int], cutoff: int) -> Table:
    """Rows by length in tokens; red where they exceed the cutoff."""
    table = Table(title="Tokens a row", box=None, title_justify="left", pad_edge=False)
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    counts, edges = np.histogram(lengths, bins=min(BARS, max(lengths) - min(lengths) + 1))
    for count, low, high in zip(counts, np.ceil(edges[:-1]), np.floor(edges[1:]), strict=True):
        colour = "red" if high > cutoff else "blue"
        bar = "█" * round(40 * count / counts.max()) or ("▏" if count else "")
        table.add_row(f"{int(low)} to {int(high)}", f"{count:,}", f"[{colour}]{bar}[/]")
    return table


def _preview(row: Encoded, image_token_id: int, tokenizer: Any) -> str:
    """The chat as the model reads it, learnt tokens in green, image tokens as a number."""
    text = ""
    start = 0
    kinds = np.where(row.ids == image_token_id, 2, row.learnt.astype(int))
    for end in [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]:
        piece = escape(tokenizer.decode(row.ids[start:end]))
        kind = kinds[start]
        text += f"[dim]({end - start} image tokens)[/]" if kind == 2 else f"[green]{piece}[/]" if kind else piece
        start = end
    return f"[bold]{escape(row.source)}[/]\n{text.rstrip()}\n"
