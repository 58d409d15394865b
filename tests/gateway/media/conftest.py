"""A gateway that shrinks images, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway.processes import Process, lensmith_serve

BUDGET = 256 * 256


@pytest.fixture(scope="module")
def shrinking(engine: Process) -> Iterator[Process]:
    """A gateway that gives engines at most 256 x 256 pixels."""
    options = ["--image-pixels", str(BUDGET), "--image-workers", "1", "--image-seconds", "5"]
    with lensmith_serve("--engine", engine.url, *options) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway
