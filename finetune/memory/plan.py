"""How many rows go through the model at once, and of how many layers activations are kept: what memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch

from finetune.encoding.encoded import Encoded
from finetune.families.base import Reader
from finetune.media.bank import ImageBank
from finetune.memory.cards import Card, this_card
from finetune.memory.estimate import GIB, estimate
from finetune.memory.heaviest_load import MicroBatchLoad, heaviest_load
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
    """Plans to be tried, by the memory that is free on this device now; one where nothing is to be tried.

    That is the first of `plans` without a GPU and with several processes, and the recipe's own where there is no choice
    or no estimate. least: the least of a number over all of the `processes`, as they must have the same plan.
    """
    on_gpu = device.type == "cuda"
    said = recipe.disable_gradient_checkpointing
    known = recipe.per_device_train_batch_size != "auto" and (said is not None or not on_gpu)
    if known or recipe.fsdp or not isinstance(reader.bank, ImageBank):
        keeps = not on_gpu if said is None else said
        layers = reader.folder.text_config["num_hidden_layers"] if isinstance(reader.bank, ImageBank) else 1
        return [Plan(recipe.batch_size, recipe.gradient_accumulation_steps, layers * keeps, layers, None)]
    host = psutil.virtual_memory().available
    free = torch.cuda.mem_get_info(device)[0] * MARGIN if on_gpu else host / 2
    card = this_card() if on_gpu else None
    found = plans(reader.folder, recipe, rows, reader.bank, card, least(free), processes, host)
    return found if on_gpu and processes == 1 else found[:1]


def plans(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card | None, memory: float,
    processes: int = 1, host: float = math.inf,
) -> list[Plan]:  # fmt: skip
    """What fits `memory` bytes by the estimate, the most rows first; the smallest if nothing does.

    Rows are the recipe's, or for `auto` each number that divides the optimiser step's evenly. Activations are kept as
    the recipe says; where it does not, of as many layers as fit, and on a CPU (card None) of all.
    host: bytes of the host's memory that are free.
    """
    layers: int = folder.text_config["num_hidden_layers"]
    layered = not why_modules(recipe, folder.model_type, processes)

    def needed(load: MicroBatchLoad, kept: int) -> float:
        if card is None:
            return FLOAT32 * estimate(folder, recipe, load, Card("CPU", math.inf, (8, 0)), kept).reserved
        return estimate(folder, recipe, load, card, kept, layered, host).reserved

    found = []
    for size in _sizes(recipe, rows, bank):
        load = heaviest_load(rows, _of_size(recipe, size), bank)
        kept = _kept_layers(recipe, layers, card, memory, partial(needed, load))
        accumulation = recipe.gradient_accumulation_steps
        if recipe.per_device_train_batch_size == "auto":
            accumulation //= size
        found.append(Plan(size, accumulation, kept, layers, needed(load, kept)))
    return [plan for plan in found if plan.needed is not None and plan.needed <= memory] or found[-1:]


def _sizes(recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank) -> list[int]:
    """Rows at once that are possible, falling."""
    if recipe.per_device_train_batch_size != "auto":
        return [recipe.per_device_train_batch_size]
    step = recipe.gradient_accumulation_steps
    sizes = [size for size in range(step, 1, -1) if step % size == 0 and size <= len(rows)]
    tokens = (heaviest_load(rows, _of_size(recipe, size), bank).tokens for size in sizes)
    return [size for size, count in zip(sizes, tokens, strict=True) if count <= MOST_TOKENS] + [1]


def _kept_layers(
    recipe: Recipe, layers: int, card: Card | None, memory: float, needed: Callable[[int], float]
) -> int:  # fmt: skip
    """Of how many layers activations are kept. needed: the bytes that keeping those of so many takes."""
    if recipe.disable_gradient_checkpointing is not None:
        return layers if recipe.disable_gradient_checkpointing else 0
    if card is None:
        return layers
    if math.isinf(memory):  # a card of which nothing is known
        return 0
    # In quarters, so that what is chosen does not change with every megabyte.
    tried = (layers * quarters // 4 for quarters in (4, 3, 2, 1))
    return next((kept for kept in tried if needed(kept) <= KEPT_SHARE * memory), 0)


def _of_size(recipe: Recipe, size: int) -> Recipe:
    return recipe.model_copy(update={"per_device_train_batch_size": size})
