"""What to say when a GPU is out of memory: the change of the recipe that would fit."""

from __future__ import annotations

from dataclasses import replace

from finetune.errors import FinetuneError
from finetune.media.bank import ImageBank
from finetune.memory.cards import this_card
from finetune.memory.remedies import changes_that_fit
from finetune.recipe.schema import Recipe
from finetune.training.dataset import TrainingData

SMALLER = 0.95


def out_of_memory(recipe: Recipe, data: TrainingData) -> FinetuneError:
    """The error of a run that its GPU could not hold, with the keys to change, by the estimator that `check` uses."""
    if not isinstance(data.bank, ImageBank):
        return FinetuneError(
            f"The GPU is out of memory. What {data.folder.model_type} models need is not estimated; lower "
            "per_device_train_batch_size, set quantization_bit: 4, or take a larger GPU."
        )
    card = this_card()
    changes = changes_that_fit(data.folder, recipe, data.rows, data.bank, card) if card else None
    # Where the estimate said that it fits, something else lives on the card too, or the estimate is short: take it
    # for a smaller one.
    while card is not None and changes == {}:
        card = replace(card, gib=card.gib * SMALLER)
        changes = changes_that_fit(data.folder, recipe, data.rows, data.bank, card)
    if not changes:
        return FinetuneError(
            "The GPU is out of memory, and no change of the recipe known here would help; take a larger one."
        )
    advice = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
    return FinetuneError(f"The GPU is out of memory; it should fit with {advice}.")
