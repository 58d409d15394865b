"""Work captured as CUDA graphs: the GPU gets thousands of kernels with one launch, so that Python cannot hold it up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

KEPT = 32  # graphs; a captured step's description takes a few MB of the card


class Graphs:
    """Work on tensors of fixed places, captured the first time and replayed from then on.

    All graphs share a pool of memory, as only one runs at a time: it grows to what the largest needs. The very first
    work runs as it is, in which libraries prepare themselves as they could not while they are captured.

    prepare: called with each graph before it is captured.
    """

    def __init__(self, prepare: Callable[[Any], None] = lambda graph: None, kept: int = KEPT) -> None:
        self.prepare, self.kept, self.warm = prepare, kept, False
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does the work, which is the same for the same key. Raises torch.OutOfMemoryError."""
        if not self.warm:
            work()
            self.warm = True
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the pool takes what this needed
            return
        if key not in self.graphs:
            self.graphs[key] = self._captured(work)
            if len(self.graphs) > self.kept:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        self.graphs[key].replay()

    def clear(self) -> None:
        """Gives the memory back."""
        self.graphs.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def _captured(self, work: Callable[[], None]) -> Any:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        self.prepare(graph)
        # Relaxed: kernels that no earlier work used are loaded meanwhile, and other threads pin memory.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="relaxed"):
            work()
        return graph
