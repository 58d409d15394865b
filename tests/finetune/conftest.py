"""The dataset and recipes that the tests of training share, and a cache of their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.finetune.fixtures import dataset, recipe

__all__ = ["dataset", "recipe"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is left in the cache of whoever runs the tests."""
    before, folder = os.environ.get("XDG_CACHE_HOME"), tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
