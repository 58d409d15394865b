"""Micro-batches captured as CUDA graphs: one launch instead of thousands."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

KEPT = 16  # graphs


class Graphs:
    """Runs `learn(inputs)` of fixed inputs, from a CUDA graph when a shape is seen again."""

    def __init__(self, learn: Callable[[Any], None], kept: int = KEPT) -> None:
        self.learn, self.kept = learn, kept
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: OrderedDict[Any, Any] = OrderedDict()
        self.seen: set[Any] = set()

    def run(self, key: Any, inputs: Any) -> None:
        graph = self.graphs.get(key)
        if graph is None and key in self.seen:
            graph = self._capture(inputs)
            self.graphs[key] = graph
            while len(self.graphs) > self.kept:
                self.graphs.popitem(last=False)
        if graph is None:
            self.seen.add(key)
            self.learn(inputs)
        else:
            self.graphs.move_to_end(key)
            graph.replay()

    def _capture(self, inputs: Any) -> Any:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self.learn(inputs)
        return graph
