"""Which engine suits a card and a load: what was measured, and the row of it that comes nearest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.planning.gpu import Gpu
from gateway.planning.types import Workload


@dataclass(frozen=True)
class Measured:
    """Requests/s of both engines behind the same load on one H200: medians of two turns.

    `side`: the square root of a picture's pixels as it came; `at_once`: requests.
    """

    size: str
    side: int
    at_once: int
    vllm: float
    lmdeploy: float

    @property
    def faster(self) -> str:
        return "lmdeploy" if self.lmdeploy >= self.vllm else "vllm"

    @property
    def ratio(self) -> float:
        """How many times the slower one's requests/s the faster one gave."""
        return max(self.lmdeploy, self.vllm) / min(self.lmdeploy, self.vllm)


SOURCE = (
    "vLLM 0.25.1, and LMDeploy 0.18.0 behind Lensmith, on one H200, Qwen3-VL-2B's shape, 32 new tokens, every picture "
    "new: docs/benchmarks.md"
)
MEASURED = (
    Measured("224x224", 224, 64, 93.33, 129.15),
    Measured("768x768", 768, 64, 37.01, 60.54),
    Measured("4000x3000", 3464, 64, 8.43, 40.14),
    Measured("768x768", 768, 1, 7.36, 8.73),
    Measured("768x768", 768, 4, 16.83, 25.93),
)


@dataclass(frozen=True)
class Advice:
    """An engine, in a sentence why, and where the figures are from."""

    engine: str
    reason: str
    source: str


def advise(gpu: Gpu, workload: Workload, at_once: int) -> Advice:
    """The engine for requests of this kind, so many `at_once`, on this card."""
    if not gpu.bf16:
        reason = (
            f"on a {gpu.name} there is no bfloat16: LMDeploy was measured with such a card's memory and float16, "
            "vLLM was not"
        )
        return Advice("lmdeploy", reason, "benchmarks/results/lmdeploy_kv.json")
    if not workload.images:
        return Advice("lmdeploy", "text alone has not been compared; LMDeploy is what its plan was measured for", "")
    side = math.sqrt(math.prod(workload.image_size))
    near = min(MEASURED, key=lambda row: abs(math.log(row.side / side)) + abs(math.log(row.at_once / at_once)) / 2)
    load = f"with {near.size} pictures and {near.at_once} at once"
    rates = f"{near.lmdeploy:g} requests/s by LMDeploy, {near.vllm:g} by vLLM"
    return Advice(near.faster, f"{load} it was {near.ratio:.1f} times as fast: {rates}", SOURCE)
