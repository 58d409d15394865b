"""Reads all that a training run would read, without a GPU, and says what it would do.

No image is decoded but those of the first rows, whose ids are compared with the processor's own; no video at all.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape

from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.memory.cards import Card
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.remedies import changes_that_fit
from finetune.model.device import dtype_on, pick_device, pick_dtype
from finetune.preflight.data import Checked, check_data
from finetune.preflight.servers import servers
from finetune.recipe.schema import Recipe
from finetune.training.optim import total_steps

ANY_CARD = Card("a GPU", math.inf, (8, 0))  # when none is named and there is none


def check_recipe(
    recipe: Recipe, console: Console | None = None, card: Card | None = None, measured: bool = False,
    price: float | None = None,
) -> bool:  # fmt: skip
    """Prints what training would do; whether it would start. Raises FinetuneError if that cannot be found out.

    card: the GPU it is for; measured: a few steps are trained to estimate the time; price: of an hour.
    """
    console = console or Console(soft_wrap=True)
    recipe.require("dataset", "output_dir")
    checked = check_data(recipe, console)
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
    parts = {name: size for name, size in needed.model_states.items() if size}
    moment = max(needed.moments, key=lambda name: needed.moments[name])
    parts[f"activations ({moment})"] = needed.moments[moment]
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    of = f" of {card.gib:.1f}" if math.isfinite(card.gib) else ""
    console.print(f"Memory on {card.name}: about {needed.reserved / GIB:.1f}{of} GiB ({listed})", highlight=False)
    if needed.reserved <= card.usable_bytes:
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
    from finetune.preflight.measure import measure

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
