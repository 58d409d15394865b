"""How the cores of the machine are split between the engines, the gateway and the workers that decode images.

An engine's own threads come first: while they wait for a core its GPU waits, too. So the image workers get what is left
and run at a lower priority, which counts where there are too few cores for all.
"""

from __future__ import annotations

import os

from gateway.engines.launch import thread_count
from gateway.runtime.models import Models

# Of an engine that is started here, beside the threads of its image processing: its server and its engine's loop.
LOOPS = 2
MOST = 32


def cores_for_images(models: Models, processes: int, cores: int | None = None) -> int:
    """Image workers for so many gateway processes together; `cores` are the machine's."""
    cores = cores or len(os.sched_getaffinity(0))
    engines = sum(engine.started_here for engine in models.engines)
    return max(1, min(MOST, cores - processes - engines * (LOOPS + thread_count(cores))))
