"""Reads all that a training run would read, without a GPU, and says what it would do.

No image is decoded but those of the first rows, whose ids are compared with the processor's own, and no video at
all, unless all pixels are asked for.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape

from finetune.errors import FinetuneError
from finetune.families.registry import family_of
from finetune.media.bank import ImageBank
from finetune.memory.cards import Card
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.layered import why_modules
from finetune.memory.plan import MARGIN, plans
from finetune.memory.remedies import changes_that_fit
from finetune.model.device import dtype_on, pick_device, pick_dtype
from finetune.model.folder import open_base
from finetune.model.targets import experts_note
from finetune.preflight.data import Checked, check_data
from finetune.preflight.report import Report
from finetune.preflight.servers import servers
from finetune.preflight.serving_sizes import size_warnings
from finetune.preflight.without_model import check_without_model, say_how_many_images_fit
from finetune.recipe.schema import Recipe
from finetune.reporting.trackers import refuse_missing
from finetune.training.optim import total_steps
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder

ANY_CARD = Card("a GPU", math.inf, (8, 0))  # when none is named and there is none


def check_recipe(
    recipe: Recipe, report: Report | None = None, card: Card | None = None, measured: bool = False,
    price: float | None = None, decoded: bool = False,
) -> bool:  # fmt: skip
    """Reports what training would do, as far as model and data are there; whether it would start.

    card: the GPU it is for; measured: a few steps are trained to estimate the time; price: of an hour;
    decoded: all pixels are read.
    """
    report = report or Report(Console(soft_wrap=True))
    reader, checked = None, None
    for key in ("dataset", "output_dir"):
        if getattr(recipe, key) is None:
            report.error(f"The recipe lacks {key}: {Recipe.model_fields[key].description}")
    try:
        refuse_missing(recipe.report_to)
    except FinetuneError as error:
        report.error(error.message)
    try:
        folder = open_base(recipe)
        reader = family_of(folder).read(folder, recipe)
    except FinetuneError as error:
        report.error(error.message)
    if recipe.dataset is not None:
        try:
            if reader is None:
                check_without_model(recipe, report)
            else:
                checked = check_data(recipe, reader, report, decoded)
        except FinetuneError as error:
            report.error(error.message)
            say_how_many_images_fit(recipe, report)
    try:
        _, reason = dtype_on(recipe, card.capability, card.name) if card else pick_dtype(recipe, pick_device())
        report.say(f"Compute dtype {escape(reason)}")
    except FinetuneError as error:
        report.error(error.message)
    if reader is not None:
        if checked is not None and checked.rows:
            _check_memory(recipe, reader.folder, checked, card or ANY_CARD, report)
        if note := experts_note(reader.folder, recipe):
            report.warn(note)
        for warning in size_warnings(recipe, reader.folder):
            report.warn(warning)
        found = servers(reader.folder)
        report.figures["servers"] = [{"name": name, "loads": loads, "how": how} for name, loads, how in found]
        for name, loads, how in found:
            report.say(f"{name} {'loads' if loads else '[yellow]does not load[/]'} the merged model: {how}")
    if checked is not None and measured and not report.problems:
        _estimate_time(recipe, len(checked.rows), price, report)
    return report.verdict()


def _check_memory(recipe: Recipe, folder: ModelFolder, checked: Checked, card: Card, report: Report) -> None:
    """Prints the estimate of the GPU's memory, whose parts add up to it; reports if it does not fit."""
    if not isinstance(checked.bank, ImageBank):
        report.say(f"Memory is not estimated for {folder.model_type} models; a few steps tell (--measure).")
        return
    usable = MARGIN * card.usable_bytes
    plan = plans(folder, recipe, checked.rows, checked.bank, card, usable)[0]
    if recipe.per_device_train_batch_size == "auto":
        report.say(
            f"per_device_train_batch_size: auto would be {plan.words}, by the estimate; on a GPU a trial of some "
            f"seconds decides between it and fewer rows. A step has "
            f"{counted(recipe.gradient_accumulation_steps, 'row')}"
        )
    recipe = plan.applied(recipe)
    load = heaviest_load(checked.rows, recipe, checked.bank)
    layered = not why_modules(recipe, folder.model_type)
    needed = estimate(folder, recipe, load, card, plan.kept_layers, layered)
    if recipe.disable_gradient_checkpointing is None and math.isfinite(card.gib):
        report.say(f"Gradient checkpointing: training keeps {plan.activations}, as memory allows")
    parts = {name: size for name, size in needed.model_states.items() if size}
    moment = max(needed.moments, key=lambda name: needed.moments[name])
    parts[f"activations ({moment})"] = needed.moments[moment]
    parts["workspace and gaps"] = needed.reserved - sum(parts.values())
    shares = {name: round(size / GIB, 2) for name, size in parts.items()}
    listed = ", ".join(f"{name} {size:.2f}" for name, size in shares.items())
    of = f" of {card.gib:.1f}" if math.isfinite(card.gib) else ""
    report.say(f"Memory on {card.name}: about {sum(shares.values()):.2f}{of} GiB ({listed})")
    fits = needed.reserved <= card.gib * GIB
    memory = {"card": card.name, "card_gib": card.gib if math.isfinite(card.gib) else None, "fits": fits}
    report.figures["memory"] = memory | {"needed_gib": needed.reserved / GIB, "parts_gib": shares}
    if fits:
        return
    changes = changes_that_fit(folder, recipe, checked.rows, checked.bank, card)
    report.figures["memory"]["changes"] = changes
    advice = " ".join(f"{key}={str(value).lower()}" for key, value in (changes or {}).items())
    report.error(
        f"training does not fit the memory of {card.name}; "
        f"{f'with {advice} it would' if advice else 'take a larger card'}."
    )


def _estimate_time(recipe: Recipe, rows: int, price: float | None, report: Report) -> None:
    """Prints how long training takes and what it costs, from a few steps."""
    from finetune.preflight.measure import measure

    result = measure(recipe)
    steps = total_steps(recipe, rows)
    samples = min(
        steps * recipe.batch_size * recipe.gradient_accumulation_steps,
        math.ceil(rows * recipe.num_train_epochs) if recipe.max_steps < 0 else math.inf,
    )
    hours = (result.first_step_seconds + samples / result.samples_per_second) / 3600
    memory = f", {result.peak_memory_gib:.1f} GiB at most" if result.peak_memory_gib is not None else ""
    cost = f", {hours * price:.2f} at {price:g} an hour" if price is not None else ""
    time = f"{hours:.1f} hours" if hours >= 2 else counted(max(1, round(hours * 60)), "minute")
    report.figures["time"] = {
        "hours": hours,
        "cost": hours * price if price is not None else None,
        "samples_per_second": result.samples_per_second,
        "peak_memory_gib": result.peak_memory_gib,
    }
    report.say(f"Measured {result.samples_per_second:.2f} samples/s{memory}: about {time} without validation{cost}")
