"""Child processes whose lines `make cov` does not count: counting makes a training process a third slower."""

from __future__ import annotations

import os


def unmeasured() -> dict[str, str]:
    """This process's environment, without what makes a child count its lines."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
