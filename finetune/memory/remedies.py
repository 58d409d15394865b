"""Which changes to a recipe would make it fit a card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune.encoding.encoded import Encoded
from finetune.media.bank import ImageBank
from finetune.memory.cards import Card
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.memory.layered import why_modules
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


def changes_that_fit(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card
) -> dict[str, Any] | None:
    """The keys to change so that training fits the card, what harms least first; {} if it fits, None if none help."""
    changes: dict[str, Any] = {}

    def fits() -> bool:
        changed = recipe.model_copy(update=changes)
        load = heaviest_load(rows, changed, bank, changes.get("image_max_pixels"), changes.get("video_max_pixels"))
        layered = not why_modules(changed, folder.model_type)
        return estimate(folder, changed, load, card, layered=layered).reserved <= card.usable_bytes

    for change in _changes(recipe, bank):
        if fits():
            return changes
        changes |= change
    return changes if fits() else None


def _changes(recipe: Recipe, bank: ImageBank) -> Iterator[dict[str, Any]]:
    if recipe.disable_gradient_checkpointing:
        yield {"disable_gradient_checkpointing": False}
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    size = recipe.batch_size
    while size > 1:
        size //= 2
        yield {"per_device_train_batch_size": size, "gradient_accumulation_steps": -(-rows // size)}
    if recipe.quantization_bit is None:
        yield {"quantization_bit": 4}
    sizes = [rows * columns * bank.limits.patch**2 for _, rows, columns in bank.grids]
    pixels = max((size for index, size in enumerate(sizes) if index in bank.clips), default=0)
    while pixels // 2 >= 64 * 64:
        pixels //= 2
        yield {"video_max_pixels": pixels}
    pixels = max((size for index, size in enumerate(sizes) if index not in bank.clips), default=0)
    while pixels // 2 >= max(bank.limits.min_pixels, 64 * 64):
        pixels //= 2
        yield {"image_max_pixels": pixels}
