"""A computation on fixed buffers, captured as one CUDA graph for each of a few numbers of rows.

Graphs are captured at the end of LMDeploy's own warm-up, as its decode steps are: beside the cache, before any request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from lmdeploy.pytorch.engine.model_agent import agent
from lmdeploy.pytorch.models import qwen3_vl
from lmdeploy.utils import get_logger

from gateway.engines.startup.levers.attention_tiles import fits

LOG = get_logger("lmdeploy")
MODEL_TYPE = "qwen3_vl"  # of config.json; others inherit from its classes
Capture = Callable[[Callable[[], None]], Callable[[], None]]


@lru_cache(maxsize=1)
def memory_pool() -> Any:
    """Of all graphs: none runs while another does, so they share the memory of their intermediate results."""
    return torch.cuda.graph_pool_handle()


def cuda_graph(call: Callable[[], None]) -> Callable[[], None]:
    """What `call` launches on the current stream, to be launched again at once."""
    call()  # kernels are compiled and loaded before the capture, in which neither is allowed
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=memory_pool(), capture_error_mode="thread_local")  # other threads may use the GPU
    try:
        call()
    finally:
        graph.capture_end()
    replay: Callable[[], None] = graph.replay
    return replay


class CapturedCalls:
    """`compute(budget)` reads and writes buffers that stay where they are, `budget` rows of them."""

    def __init__(self, compute: Callable[[int], None], budgets: Sequence[int]) -> None:
        """Raises ValueError without a budget."""
        if not budgets:
            raise ValueError("even the smallest budget of rows would take too much memory")
        self._compute, self._budgets = compute, sorted(budgets)
        self._replays: dict[int, Callable[[], None]] = {}

    @property
    def largest(self) -> int:
        return self._budgets[-1]

    def capture(self, capture: Capture) -> None:
        """The largest first: the others then find room in the memory that it took."""
        for budget in reversed(self._budgets):
            self._replays[budget] = capture(partial(self._compute, budget))

    def budget(self, rows: int, sequences: int) -> int | None:
        """The smallest with room for `rows` rows of `sequences` sequences."""
        return next((budget for budget in self._budgets if fits(budget, rows, sequences)), None)

    def run(self, budget: int) -> None:
        self._replays[budget]()


def within(budgets: Sequence[int], bytes_a_row: int, limit: int) -> list[int]:
    """The budgets whose largest intermediate results take at most `limit` bytes."""
    return [budget for budget in budgets if budget * bytes_a_row <= limit]


def capturable(owner: Any, model: Any) -> bool:
    """Whether a model agent wants graphs and has the model they are for: on one GPU, no eager mode, no adapters."""
    return (
        type(model) is qwen3_vl.Qwen3VLForConditionalGeneration
        and model.config.model_type == MODEL_TYPE
        and hasattr(model.visual, "deepstack_merger_list")
        and not owner.backend_config.eager_mode
        and owner.dist_config.world_size == 1
        and not owner.adapters
    )


def after_warmup(original: Callable[[Any], None], capture: Callable[[Any, Any], None], what: str) -> Any:
    """BaseModelAgent.warmup with `capture(agent, model)` at its end, after which graphs of `what` are in place."""

    def warmup(self: Any) -> None:
        original(self)
        model = self.patched_model.get_model()
        if not capturable(self, model):
            return
        try:
            with self.all_context(), torch.cuda.stream(self.stream), torch.inference_mode():
                capture(self, model)
                torch.cuda.synchronize()
        except Exception as error:
            LOG.warning("LMDeploy runs without CUDA graphs of the %s: %s: %s", what, type(error).__name__, error)

    return warmup


def capture_at_warmup(capture: Callable[[Any, Any], None], what: str) -> None:
    agent.BaseModelAgent.warmup = after_warmup(agent.BaseModelAgent.warmup, capture, what)
