"""Plans how to start vLLM for a model folder on a card: its flags, each with its reason, and what does not fit.

Source: vllm 0.33.0, v1/worker/gpu_worker.py, v1/worker/utils.py (`request_memory`) and v1/core/kv_cache_planning.py.
vLLM measures a step and sizes its cache by itself, within a share of the whole card; what a step needs is estimated
here as for LMDeploy and has not been measured for vLLM. So the plan decides what vLLM cannot know: how long a request
may be, how many there are at once, how large images are, what else is on the card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from gateway.config.engine_args import boolean_option, fraction_option, integer_option
from gateway.planning.gpu import MIB, Gpu
from gateway.planning.lmdeploy_memory import (
    BLOCK_TOKENS,
    CONTEXT,
    GRAPHS,
    KvCache,
    activations,
    left_by_weights,
    model_memory,
)
from gateway.planning.plan import (
    MAX_BATCH,
    PREFILL_BUDGETS,
    does_not_fit,
    image_pixels,
    image_tokens,
    session_length,
)
from gateway.planning.tool_parsers import vllm_answer_flags
from gateway.planning.types import Choice, EnginePlan, EnginePlanError, Problem, Workload, with_given
from gateway.planning.weights_dtype import weights_dtype
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB
from modelfiles.ollama.budget import TEXT_TOKENS

MAX_SHARE = 0.92  # vLLM's own default
# Beside CUDA's context: vLLM refuses to start when less than its share is free.
SPARE = 256 * MIB


def make_vllm_plan(
    folder: ModelFolder,
    gpu: Gpu,
    workload: Workload,
    max_images: int,
    tp: int = 1,
    given: Mapping[str, str] | None = None,
) -> EnginePlan:
    """The plan for `gpu.free` bytes. `given` replaces flags; those it does not know are passed on.

    `max_images`: most of them in one request. Raises ValueError with one sentence.
    """
    given = dict(given or {})
    tp = integer_option(given, "tensor-parallel-size", tp)
    try:
        model = model_memory(folder, tp)
    except ValueError as error:
        raise EnginePlanError(f"{folder.name} cannot be planned: {error}.") from None
    tokens = image_tokens(folder, workload.image_size)
    request = workload.images * tokens + TEXT_TOKENS
    eager = boolean_option(given, "enforce-eager", False)
    share = fraction_option(given, "gpu-memory-utilization") or free_share(gpu)
    batch = integer_option(given, "max-num-seqs", workload.concurrency or MAX_BATCH)
    step = activations(folder, PREFILL_BUDGETS[0], batch, model.vocabulary) + (0 if eager else GRAPHS)
    whole = int(share * gpu.memory)
    # In whole blocks of LMDeploy's size; vLLM's are smaller.
    room = (whole - (gpu.free - left_by_weights(gpu, model)) - step) // (model.token * BLOCK_TOKENS)
    cache = KvCache(room, PREFILL_BUDGETS[0]) if room > 0 else None
    plan = EnginePlan(
        model=folder.name,
        gpu=gpu,
        tp=tp,
        weights=model.weights,
        free=left_by_weights(gpu, model),
        reserve=0,
        activations=step,
        token_bytes=model.token,
        image_tokens=tokens,
        request_tokens=request,
        cache=cache,
        sessions=cache.tokens // request if cache is not None else 0,
        by_fraction={},
        image_pixels=0,
    )
    if cache is None:
        plan.problems.append(does_not_fit(folder, gpu, model, tp, plan.free))
        return plan
    session = integer_option(given, "max-model-len", session_length(folder, workload, cache, request))
    plan.image_pixels = image_pixels(folder, session)
    if request > session:
        change = f"--session-len {math.ceil(request / 1024) * 1024}, fewer images or smaller ones (--image-size)"
        plan.problems.append(
            Problem(f"A request of {request:,} tokens is longer than a session of {session:,}.", change)
        )
    if session > cache.tokens:
        what = f"The cache holds about {cache.tokens:,} tokens, a request may have {session:,}."
        plan.problems.append(Problem(what, f"at most --session-len {cache.tokens}"))
    shared = Choice("tensor-parallel-size", tp, f"{model.weights / GIB:.2f} GiB of weights on each GPU")
    chosen = [
        weights_dtype(folder, gpu),
        shared,
        Choice(
            "max-model-len", session, f"most tokens of one prompt and answer; the cache holds about {cache.tokens:,}"
        ),
        Choice("max-num-seqs", batch, f"requests of {request:,} tokens; about {plan.sessions} fit at once"),
        Choice("gpu-memory-utilization", share, f"of the whole card, of which {gpu.free / GIB:.2f} GiB are free"),
        Choice("generation-config", "vllm", "the gateway sends the model's own values with each request"),
        *_images(folder, plan, max_images),
        *_template(folder),
        *(Choice(option, value, "reads the model's tool calls") for option, value in vllm_answer_flags(folder).items()),
    ]
    plan.choices = with_given(chosen, given)
    return plan


def free_share(gpu: Gpu) -> float:
    """The largest share of the card, in hundredths, that is free when vLLM looks."""
    return max(0.01, min(MAX_SHARE, math.floor((gpu.free - CONTEXT - SPARE) / gpu.memory * 100) / 100))


def _images(folder: ModelFolder, plan: EnginePlan, max_images: int) -> list[Choice]:
    if not folder.vision_config:
        return []
    chosen = [Choice("limit-mm-per-prompt", json.dumps({"image": max_images}), "the gateway's own limit")]
    smallest, largest = folder.image_pixel_limits
    limits = {"min_pixels": smallest, "max_pixels": min(largest, plan.image_pixels or largest)}
    if largest:
        kwargs = json.dumps({name: pixels for name, pixels in limits.items() if pixels})
        chosen.append(Choice("mm-processor-kwargs", kwargs, "the sizes of training, and no more than fits a request"))
    return chosen


def _template(folder: ModelFolder) -> list[Choice]:
    source = folder.chat_template_and_source[1]
    if source != "chat_template.jinja":
        return []
    return [Choice("chat-template", str(folder.path / source), "transformers 5 writes it there alone")]
