"""Work captured as CUDA graphs: the GPU gets thousands of kernels with one launch, so that Python cannot hold it up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any
from weakref import WeakSet

import torch

_all: WeakSet[Graphs] = WeakSet()


class Graphs:
    """Work on tensors of fixed places, captured and from then on replayed.

    The graphs of a process share a pool of memory, as only one runs at a time: it grows to what the largest needs. So
    nothing that a later work reads may be left in memory that was taken while capturing. What libraries do when they
    are first used cannot be captured: the first work of a kind is to be done without.

    kept: graphs that are remembered, those used last; prepare: called with each graph before it is captured; failed:
    called with the reason when one cannot be captured: no memory for it, or a kernel that cannot be in a graph. works:
    whether there are graphs, which needs a GPU, and that none has failed.
    """

    def __init__(
        self, device: torch.device, kept: int, prepare: Callable[[Any], None] = lambda graph: None,
        failed: Callable[[RuntimeError], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self.kept, self.prepare, self.failed = kept, prepare, failed
        self.works = device.type == "cuda" and kept > 0
        self.graphs: OrderedDict[Hashable, Any] = OrderedDict()
        _all.add(self)

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does the work, which must be the same for the same key: as a graph, or as it is where there are none."""
        if self.works:
            try:
                self._replay(key, work)
                return
            except RuntimeError as error:
                self.works = False
                for others in _all:  # the pool gives its memory back when there is no graph left in it
                    others.graphs.clear()
                self.failed(error)
            torch.cuda.empty_cache()  # not before the error is gone, which holds what the work held
        work()

    def _replay(self, key: Hashable, work: Callable[[], None]) -> None:
        if key not in self.graphs:
            self.graphs[key] = self._captured(work)
            if len(self.graphs) > self.kept:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        self.graphs[key].replay()

    def _captured(self, work: Callable[[], None]) -> Any:
        graph = torch.cuda.CUDAGraph()
        self.prepare(graph)
        # The stream of before comes back in any case; torch leaves its own where it cannot end a capture.
        # Relaxed: kernels that no earlier work used are loaded meanwhile, and other threads pin memory.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=_pool(), capture_error_mode="relaxed"),
        ):
            work()
        return graph


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()
