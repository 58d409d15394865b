"""The dataset and recipes that the tests of training share."""

from tests.support.finetune.fixtures import dataset, recipe

__all__ = ["dataset", "recipe"]
