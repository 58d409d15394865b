"""How many rows go through the model at once, and of how many layers activations are kept: what memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from finetune.encoding.encoded import Encoded
from finetune.families.base import Reader
from finetune.media.bank import ImageBank
from finetune.memory.cards import Card, this_card
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.layered import why_modules
from finetune.model.base import checkpoint_activations, keep_activations
from finetune.recipe.schema import Recipe
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder

MARGIN = 0.9  # share of the free memory that may be planned for; estimates were within 4 % of measured peaks
KEPT_SHARE = 0.8  # of that, for activations that need not be kept: of some layers alone they were never measured
MOST_TOKENS = 16384  # at once: more keep no GPU busier
ESTIMATED = "by the estimate of memory"
FLOAT32 = 2  # times the memory of 16 bits, which is what is estimated


@dataclass(frozen=True)
class Plan:
    """size: rows in a forward pass; accumulation: forward passes in an optimiser step.

    kept_layers, of `layers` of the language model: the last ones, whose activations are kept (of 1, where only
    none or all is possible); needed: bytes, None if they were not estimated.
    """

    size: int
    accumulation: int
    kept_layers: int
    layers: int
    needed: float | None

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with the rows of the plan."""
        rows = {"per_device_train_batch_size": self.size, "gradient_accumulation_steps": self.accumulation}
        return recipe.model_copy(update=rows)

    def whole(self, recipe: Recipe) -> Recipe:
        """`applied`, and whether anything is kept, as a recipe asks for that."""
        return self.applied(recipe).model_copy(update={"disable_gradient_checkpointing": self.kept_layers > 0})

    @property
    def activations(self) -> str:
        """What is kept, in words."""
        if self.kept_layers in (0, self.layers):
            return "no layer's activations" if self.kept_layers == 0 else "all activations"
        return f"the activations of {self.kept_layers} of {counted(self.layers, 'layer')}"

    def choice(self, recipe: Recipe, reason: str) -> str:
        """A line on what was chosen for the recipe; empty if nothing was."""
        if recipe.per_device_train_batch_size == "auto":
            rows = recipe.gradient_accumulation_steps
            many = f"{counted(self.accumulation, 'time')} in a step of {counted(rows, 'row')}"
            return f"per_device_train_batch_size: auto is {self.words}, {many}; {reason}.\n"
        if recipe.disable_gradient_checkpointing is None and self.needed is not None:
            return f"Gradient checkpointing: {self.words}, {reason}.\n"
        return ""

    def record(self, reason: str) -> dict[str, Any]:
        """The plan for environment.json."""
        chosen = reason if self.needed is not None else "by the recipe"
        return {"rows": self.size, "accumulation": self.accumulation, "kept": self.activations, "chosen": chosen}

    @property
    def words(self) -> str:
        needed = "" if self.needed is None else f" (about {self.needed / GIB:.1f} GiB)"
        return f"{counted(self.size, 'row')} at once, keeping {self.activations}{needed}"


def set_checkpointing(model: Any, plan: Plan) -> None:
    """Makes a *ForConditionalGeneration keep the activations that the plan says."""
    keep_activations(model)
    if plan.kept_layers < plan.layers:
        checkpoint_activations(model, plan.kept_layers)


def plans_here(
    reader: Reader, recipe: Recipe, rows: Sequence[Encoded], device: torch.device, least: Callable[[float], float],
    processes: int = 1,
) -> list[Plan]:  # fmt: skip
    """`plans` for the memory that is free on this device now; the recipe's own where there is no choice or no estimate.

    least: the least of a number over all of the `processes`, as they must have the same plans.
    """
    on_gpu = device.type == "cuda"
    said = recipe.disable_gradient_checkpointing
    known = recipe.per_device_train_batch_size != "auto" and (said is not None or not on_gpu)
    if known or recipe.fsdp or not isinstance(reader.bank, ImageBank):
        keeps = not on_gpu if said is None else said
        layers = reader.folder.text_config["num_hidden_layers"] if isinstance(reader.bank, ImageBank) else 1
        return [Plan(recipe.batch_size, recipe.gradient_accumulation_steps, layers * keeps, layers, None)]
    free = torch.cuda.mem_get_info(device)[0] * MARGIN if on_gpu else psutil.virtual_memory().available / 2
    card = this_card() if on_gpu else None
    return plans(reader.folder, recipe, rows, reader.bank, card, least(free), processes)


def plans(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card | None, memory: float,
    processes: int = 1,
) -> list[Plan]:  # fmt: skip
    """What fits `memory` bytes by the estimate, the most rows first; the smallest if nothing does.

    Rows are the recipe's, or for `auto` each number that divides the optimiser step's evenly. Activations are kept as
    the recipe says; where it does not, of as many layers as fit, and on a CPU (card None) of all.
    """
    sizes = _sizes(recipe, rows, bank)
    found = [_plan(folder, recipe, rows, bank, card, memory, size, processes) for size in sizes]
    return [plan for plan in found if plan.needed is not None and plan.needed <= memory] or found[-1:]


def _sizes(recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank) -> list[int]:
    """Rows at once that are possible, falling."""
    if recipe.per_device_train_batch_size != "auto":
        return [recipe.per_device_train_batch_size]
    step = recipe.gradient_accumulation_steps
    sizes = [size for size in range(step, 1, -1) if step % size == 0 and size <= len(rows)]
    tokens = (heaviest_load(rows, _of_size(recipe, size), bank).tokens for size in sizes)
    return [size for size, count in zip(sizes, tokens, strict=True) if count <= MOST_TOKENS] + [1]


def _plan(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card | None, memory: float,
    size: int, processes: int,
) -> Plan:  # fmt: skip
    accumulation = recipe.gradient_accumulation_steps
    if recipe.per_device_train_batch_size == "auto":
        accumulation //= size
    layers: int = folder.text_config["num_hidden_layers"]
    load = heaviest_load(rows, _of_size(recipe, size), bank)

    def needed(kept: int) -> float:
        if card is None:
            return FLOAT32 * estimate(folder, recipe, load, Card("CPU", math.inf, (8, 0)), kept).reserved
        layered = not why_modules(recipe, folder.model_type, processes)
        return estimate(folder, recipe, load, card, kept, layered).reserved

    if recipe.disable_gradient_checkpointing is not None:
        kept = layers if recipe.disable_gradient_checkpointing else 0
    elif card is None:
        kept = layers
    elif math.isinf(memory):  # a card of which nothing is known
        kept = 0
    else:
        kept = max((kept for kept in (layers, *_steps(layers)) if needed(kept) <= KEPT_SHARE * memory), default=0)
    return Plan(size, accumulation, kept, layers, needed(kept))


def _steps(layers: int) -> list[int]:
    """Numbers of layers that are tried: quarters, so that what is chosen does not change with every megabyte."""
    return [layers * quarters // 4 for quarters in (3, 2, 1)]


def _of_size(recipe: Recipe, size: int) -> Recipe:
    return recipe.model_copy(update={"per_device_train_batch_size": size})
