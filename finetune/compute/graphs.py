"""Work captured as CUDA graphs: the GPU gets thousands of kernels with one launch, so that Python cannot hold it up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch

_all: WeakSet[Graphs] = WeakSet()


class Graphs:
    """Work on tensors of fixed places, captured and from then on replayed.

    The graphs of a process share a pool of memory, as only one runs at a time: it grows to what the largest needs. So
    nothing that a later work reads may be left in memory that was taken while capturing. What libraries do when they
    are first used cannot be captured: the first work of a kind is to be done without.

    kept: graphs that are remembered, those used last, or fewer where there is no room for so many; generators: of the
    device, from which the work draws besides the default one; failed: called with the reason when no graph can be
    captured: no memory for it, or a kernel that cannot be in one. works: whether there are graphs, which needs a GPU,
    and that it has not failed.
    """

    def __init__(
        self, device: torch.device, kept: int, generators: Sequence[torch.Generator] = (),
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:  # fmt: skip
        self.kept, self.generators, self.failed = kept, generators, failed
        self.works = device.type == "cuda" and kept > 0
        self.graphs: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()  # each with what it reads
        _all.add(self)

    def run(self, key: Hashable, work: Callable[[], None], reads: Any = None) -> None:
        """Does the work, which must be the same for the same key: as a graph, or as it is where there are none.

        reads: what it reads that nobody else keeps; it lives as long as the graph, which knows only where it was.
        """
        while self.works:
            try:
                self._replay(key, work, reads)
                return
            except RuntimeError as error:
                # Where so many graphs had no room, half as many may have; where there was none, it is not for room.
                self.works, self.kept = bool(self.graphs), max(1, len(self.graphs) // 2)
                for others in _all:  # the pool gives its memory back when there is no graph left in it
                    others.graphs.clear()
                if not self.works:
                    self.failed(_first(error))
            torch.cuda.empty_cache()  # not before the error is gone, which holds what the work held
        work()

    def _replay(self, key: Hashable, work: Callable[[], None], reads: Any) -> None:
        if key not in self.graphs:
            self.graphs[key] = self._captured(work), reads
            if len(self.graphs) > self.kept:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        graph, _ = self.graphs[key]
        graph.replay()

    def _captured(self, work: Callable[[], None]) -> Any:
        # Torch takes a graph into a pool only while there is another one in it, which must not be freed meanwhile.
        other = next((graph for graphs in _all for graph, _ in graphs.graphs.values()), None)
        pool = torch.cuda.graph_pool_handle() if other is None else other.pool()
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        stream = torch.cuda.current_stream()
        try:
            # Relaxed: kernels that no earlier work used are loaded meanwhile, and other threads pin memory.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="relaxed"):
                work()
        except RuntimeError:
            torch.cuda.set_stream(stream)
            self._end_capture(pool)
            raise
        return graph

    def _end_capture(self, pool: Any) -> None:
        """Ends what torch leaves as if there was a capture, where it could not begin or end one (2.11 and before)."""
        device = torch.cuda.current_device()
        with suppress(RuntimeError, AttributeError):  # memory is no longer taken for it; or torch has no such function
            torch._C._cuda_endAllocateToPool(device, pool)
        for generator in (torch.cuda.default_generators[device], *self.generators):
            generator.graphsafe_set_state(generator.clone_state())


def _first(error: BaseException) -> BaseException:
    """The error that came first: a capture that went wrong often cannot be ended either."""
    while error.__context__ is not None:
        error = error.__context__
    return error
