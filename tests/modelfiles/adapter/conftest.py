"""The dataset and recipes that adapters are made with."""

from tests.support.finetune.fixtures import dataset, recipe

__all__ = ["dataset", "recipe"]
