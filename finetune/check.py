"""Reads all that a training run would read, without a GPU, and says what it would do.

No image is decoded but those of the first rows, whose ids are compared with the processor's own; no video at all.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.cards import Card
from finetune.cutoff import cut
from finetune.dataset import PROVEN_ROWS, split_by_image
from finetune.errors import FinetuneError
from finetune.family import Bank, Encoder, family_of
from finetune.formats import Row
from finetune.images import ImageBank
from finetune.memory import GIB, changes_that_fit, estimate, heaviest_load
from finetune.model import dtype_on, open_base, pick_device, pick_dtype
from finetune.recipe import Recipe
from finetune.rows import dataset_names, mix, read_rows
from finetune.schedule import total_steps
from finetune.servers import servers
from finetune.template import Encoded, prove
from modelfiles.folder import ModelFolder

SHOWN_PROBLEMS = 20
SHOWN_ROWS = 3
BARS = 10
ANY_CARD = Card("a GPU", math.inf, (8, 0))  # when none is named and there is none


@dataclass(frozen=True)
class Checked:
    """What a run would train on; problems: whether anything would keep it from starting."""

    folder: ModelFolder
    bank: Bank
    rows: list[Encoded]
    problems: bool


def check(
    recipe: Recipe, console: Console | None = None, card: Card | None = None, measured: bool = False,
    price: float | None = None,
) -> bool:  # fmt: skip
    """Prints what training would do; whether it would start. Raises FinetuneError if that cannot be found out.

    card: the GPU it is for; measured: a few steps are trained to estimate the time; price: of an hour.
    """
    console = console or Console(soft_wrap=True)
    recipe.require("dataset", "output_dir")
    checked = _check_data(recipe, console)
    if not checked.rows:
        console.print("No row can be trained on.")
        return False
    try:
        _, reason = dtype_on(recipe, card.capability, card.name) if card else pick_dtype(recipe, pick_device())
        console.print(f"Compute dtype {reason}", highlight=False)
        sound = not checked.problems
    except FinetuneError as error:
        console.print(f"[red]Error:[/] {escape(error.message)}", highlight=False)
        sound = False
    fits = _check_memory(recipe, checked, card or ANY_CARD, console)
    for name, loads, how in servers(checked.folder):
        console.print(
            f"{name} {'loads' if loads else '[yellow]does not load[/]'} the merged model: {how}", highlight=False
        )
    if sound and fits and measured:
        _estimate_time(recipe, len(checked.rows), price, console)
    return sound and fits


def _check_data(recipe: Recipe, console: Console) -> Checked:
    """Reads every row and prints what is in them and what is wrong with them."""
    folder = open_base(recipe)
    reader = family_of(folder).read(folder, recipe)
    bank, encoder = reader.bank, reader.encoder
    rows, problems = _sound_rows(str(recipe.dataset), recipe, encoder)
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        problems += _sound_rows(recipe.eval_dataset, recipe, encoder)[1]
    for problem in problems[:SHOWN_PROBLEMS]:
        console.print(f"[red]Error:[/] {escape(problem.message)}", highlight=False)
    if len(problems) > SHOWN_PROBLEMS:
        console.print(f"[red]Error:[/] ... and {len(problems) - SHOWN_PROBLEMS} more broken rows.", highlight=False)
    if not rows:
        return Checked(folder, bank, [], True)

    encoded: list[Encoded] = list(encoder.encode(rows))
    prove(rows[:PROVEN_ROWS], encoded[:PROVEN_ROWS], reader.processor, bank)
    for source, count in Counter(row.source.rpartition(", row ")[0] for row in rows).items():
        console.print(f"{source}: {count:,} rows", highlight=False)
    images = len(bank.paths) - len(bank.clips)
    limits = f", {bank.limits.least:,} to {bank.limits.most:,} pixels each" if isinstance(bank, ImageBank) else ""
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
    console.print(_histogram([len(row) for row in encoded], recipe.cutoff_len))
    try:
        fitting = cut(rows, encoded, recipe, encoder)
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
        console.print(_preview(row, encoder, reader.processor.tokenizer), highlight=False)
    labels = sum(int(row.learnt.sum()) for row in kept)
    console.print(
        f"{len(kept):,} rows, {sum(map(len, kept)):,} tokens of which {labels:,} are learnt; "
        f"{total_steps(recipe, len(kept)):,} steps of up to "
        f"{recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps} rows",
        highlight=False,
    )
    return Checked(folder, bank, kept, bool(problems))


def _says(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or any(part.get("text", "").strip() for part in message["content"])


def _check_memory(recipe: Recipe, checked: Checked, card: Card, console: Console) -> bool:
    """Prints the estimate of the GPU's memory; whether it fits, as far as that is known."""
    if not isinstance(checked.bank, ImageBank):
        console.print(
            f"Memory is not estimated for {checked.folder.model_type} models; a few steps tell (--measure).",
            highlight=False,
        )
        return True
    load = heaviest_load(checked.rows, recipe, checked.bank)
    needed = estimate(checked.folder, recipe, load, card)
    parts = {name: size for name, size in needed.standing.items() if size}
    moment = max(needed.moments, key=lambda name: needed.moments[name])
    parts[f"activations ({moment})"] = needed.moments[moment]
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    of = f" of {card.gib:.1f}" if math.isfinite(card.gib) else ""
    console.print(f"Memory on {card.name}: about {needed.reserved / GIB:.1f}{of} GiB ({listed})", highlight=False)
    if needed.reserved <= card.gib * GIB:
        return True
    changes = changes_that_fit(checked.folder, recipe, checked.rows, checked.bank, card)
    advice = " ".join(f"{key}={str(value).lower()}" for key, value in (changes or {}).items())
    console.print(
        f"[red]Error:[/] that does not fit; {f'with {advice} it would' if advice else 'take a larger card'}.",
        highlight=False,
    )
    return False


def _estimate_time(recipe: Recipe, rows: int, price: float | None, console: Console) -> None:
    """Prints how long training takes and what it costs, from a few steps."""
    from finetune.measure import measure

    result = measure(recipe)
    steps = total_steps(recipe, rows)
    samples = min(
        steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps,
        math.ceil(rows * recipe.num_train_epochs) if recipe.max_steps < 0 else math.inf,
    )
    hours = (result.first_step_seconds + samples / result.samples_per_second) / 3600
    memory = f", {result.peak_memory_gib:.1f} GiB at most" if result.peak_memory_gib is not None else ""
    cost = f", {hours * price:.2f} at {price:g} an hour" if price is not None else ""
    time = f"{hours:.1f} hours" if hours >= 2 else f"{max(1, round(hours * 60))} minutes"
    console.print(
        f"Measured {result.samples_per_second:.2f} samples/s{memory}: about {time} without validation{cost}",
        highlight=False,
    )


def _sound_rows(names: str, recipe: Recipe, encoder: Encoder) -> tuple[list[Row], list[FinetuneError]]:
    """The rows that can be used, and what is wrong with the others."""
    datasets: list[list[Row]] = []
    problems: list[FinetuneError] = []
    for name in dataset_names(names):
        rows = []
        for row in read_rows(name, recipe, hashlib.sha256()):
            if isinstance(row, FinetuneError):
                problems.append(row)
                continue
            try:
                encoder.refuse_specials(row)
                encoder.add_media(row)
            except FinetuneError as error:
                problems.append(error)
            else:
                rows.append(row)
        if rows:
            datasets.append(rows)
    return mix(datasets, recipe) if datasets else [], problems


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


def _preview(row: Encoded, encoder: Encoder, tokenizer: Any) -> str:
    """The chat as the model reads it, learnt tokens in green, image and video tokens as a number."""
    text = ""
    start = 0
    kinds = np.where(row.ids == encoder.image_token_id, 2, row.learnt.astype(int))
    kinds[row.ids == encoder.video_token_id] = 3
    for end in [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]:
        piece = escape(tokenizer.decode(row.ids[start:end]))
        kind = kinds[start]
        if kind >= 2:
            piece = f"[dim]({end - start} {'image' if kind == 2 else 'video'} tokens)[/]"
        text += f"[green]{piece}[/]" if kind == 1 else piece
        start = end
    return f"[bold]{escape(row.source)}[/]\n{text.rstrip()}\n"
