"""The flags of `lmdeploy serve api_server` that a plan chooses, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.planning.lmdeploy_memory import KvCache
from gateway.planning.tool_parsers import answer_flags
from gateway.planning.types import Choice, with_given
from gateway.planning.weights_dtype import weights_dtype
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB

if TYPE_CHECKING:
    from gateway.planning.types import EnginePlan


# Options that change what a token takes or how many there are.
RESIZING = {"quant-policy", "num-gpu-blocks", "cache-block-seq-len", "kernel-block-size", "model-format"}
UNPLANNED = "as given; the cache's size above does not reckon with it"


def choices(
    folder: ModelFolder,
    plan: EnginePlan,
    cache: KvCache,
    share: float,
    batch: int,
    prefill: int,
    session: int,
    eager: bool,
    given: Mapping[str, str],
) -> list[Choice]:
    """LMDeploy's flags for a plan whose sizes are known; `given` replaces them and adds more."""
    gpu, left = plan.gpu, plan.free - cache.tokens * plan.token_bytes
    graphs = (
        f"CUDA graphs would take memory that the cache needs on a {gpu.name}"
        if eager
        else "CUDA graphs decode up to 5 times as fast as eager mode"
    )
    chosen = [
        Choice("backend", "pytorch", "TurboMind has no Qwen3-VL; unasked, LMDeploy would choose by model"),
        weights_dtype(folder, gpu),
        Choice("tp", plan.tp, f"{plan.weights / GIB:.2f} GiB of weights on each GPU"),
        Choice("eager-mode", eager, graphs),
        Choice("session-len", session, f"most tokens of one prompt and answer; the cache holds {cache.tokens:,}"),
        Choice("max-batch-size", batch, f"requests of {plan.request_tokens:,} tokens; {plan.sessions} fit at once"),
        Choice(
            "max-prefill-token-num",
            prefill,
            f"reserves {plan.reserve / GIB:.2f} GiB for logits; one image may have up to {prefill:,} tokens",
        ),
        Choice(
            "cache-max-entry-count",
            share,
            f"keeps {left / GIB:.2f} GiB beside the cache; a step needs {plan.activations / GIB:.2f}",
        ),
        _prefix_caching(folder),
        *_answers(folder),
    ]
    return with_given(chosen, given, dict.fromkeys(RESIZING, UNPLANNED))


def _prefix_caching(folder: ModelFolder) -> Choice:
    option = "enable-prefix-caching"
    if not folder.vision_config:
        return Choice(option, True, "equal beginnings are computed once")
    # lmdeploy 0.18, pytorch/multimodal/data_type.py: SHA-256 over the pixels (7 MB in 16 bits for 768x768) in the
    # engine's loop. benchmarks/results/lmdeploy_serving.json: 42.7 instead of 55.3 req/s where every picture is new.
    return Choice(option, False, "hashing each image's pixels costs a quarter of the answers; true if images recur")


def _answers(folder: ModelFolder) -> list[Choice]:
    """What an answer may hold. The gateway expects them of an engine that it reaches at a URL, too."""
    reasons = {
        "enable-abort-handling": "an answer that met a stop string is ended, and its tokens are counted",
        "logprobs-mode": "without it LMDeploy refuses `logprobs`",
        "tool-call-parser": "reads the tool calls that the chat template asks for",
    }
    return [Choice(option, value, reasons[option]) for option, value in answer_flags(folder).items()]
