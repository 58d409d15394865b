"""Child processes whose lines `make cov` does not count: counting makes a training process a third slower."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

COUNTING = "COVERAGE_PROCESS_CONFIG"  # tells coverage in a child process what to count


def unmeasured() -> dict[str, str]:
    """This process's environment, without what makes a child count its lines."""
    return {name: value for name, value in os.environ.items() if name != COUNTING}


@pytest.fixture(scope="package", autouse=True)
def unmeasured_children() -> Iterator[None]:
    """No child process of the tests of a package whose conftest imports this counts its lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(COUNTING, raising=False)
        yield
