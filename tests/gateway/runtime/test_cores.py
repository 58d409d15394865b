"""How many image workers there are for the machine's cores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.runtime.cores import cores_for_images


@pytest.mark.parametrize(
    ("cores", "engines", "processes", "workers"),
    [
        (16, 1, 1, 9),  # 2 for the engine's loops, 4 for its image processing, 1 for the gateway
        (16, 0, 1, 15),
        (16, 1, 4, 6),
        (8, 1, 1, 3),
        (4, 1, 1, 1),
        (1, 1, 2, 1),
        (192, 0, 1, 32),
    ],
)
def test_they_get_what_engines_and_gateway_leave(cores: int, engines: int, processes: int, workers: int) -> None:
    models: Any = SimpleNamespace(engines=[SimpleNamespace(started_here=True)] * engines)
    assert cores_for_images(models, processes, cores) == workers
