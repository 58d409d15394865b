"""Work captured as CUDA graphs: the GPU gets thousands of kernels with one launch, so that Python cannot hold it up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch


class Graphs:
    """Work on tensors of fixed places, captured and from then on replayed.

    The graphs of a process share a pool of memory, as only one runs at a time: it grows to what the largest needs. So
    nothing that a later work reads may be left in memory that was taken while capturing.

    kept: graphs that are remembered, those used last; prepare: called with each graph before it is captured.
    """

    def __init__(self, kept: int, prepare: Callable[[Any], None] = lambda graph: None) -> None:
        self.kept, self.prepare = kept, prepare
        self.graphs: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does the work, which must be the same for the same key. Raises RuntimeError if it cannot be captured."""
        if key not in self.graphs:
            self.graphs[key] = self._captured(work)
            if len(self.graphs) > self.kept:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        self.graphs[key].replay()

    def _captured(self, work: Callable[[], None]) -> Any:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the pool cannot use what is left over elsewhere
        graph = torch.cuda.CUDAGraph()
        self.prepare(graph)
        # Relaxed: kernels that no earlier work used are loaded meanwhile, and other threads pin memory.
        with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="relaxed"):
            work()
        return graph


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
