"""Plans how to start LMDeploy for a model folder on a card: every flag with its reason, and what does not fit.

Reads config.json and tensor headers only; the memory arithmetic is LMDeploy's own (planning/lmdeploy_memory.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.config.engine_args import boolean_option, fraction_option, integer_option
from gateway.planning.flags import choices
from gateway.planning.gpu import CARDS, Gpu
from gateway.planning.lmdeploy_memory import (
    CONTEXT,
    GRAPHS,
    MARGIN,
    PICTURE_GRAPHS,
    PICTURE_GRAPHS_OF,
    KvCache,
    ModelMemory,
    NoRoom,
    activations,
    kv_cache,
    left_by_weights,
    model_memory,
    runtime_reserve,
)
from gateway.planning.types import EnginePlan, EnginePlanError, Problem, Workload
from modelfiles import counted
from modelfiles.folder.lmdeploy import PYTORCH_ARCHITECTURES
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB
from modelfiles.images.smart_resize import smart_resize
from modelfiles.ollama.architectures import find_architecture
from modelfiles.ollama.budget import TEXT_TOKENS

PREFILL_BUDGETS = (8192, 4096, 2048)  # tokens; larger ones gave no more answers a second, measured on an H200
PREFILL_SHARE = 0.1  # of the memory left by the weights, that the logits of a prefill step may reserve
MAX_BATCH = 64  # batches above it gave no more answers a second with images, measured on an H200
LONG_SESSION = 32768  # tokens; one session that is longer would push out too many others
SHORT_TEXT = 512  # tokens of a session that one image leaves for the question and the answer
FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_FRACTION = 0.95


def make_engine_plan(
    folder: ModelFolder, gpu: Gpu, workload: Workload, tp: int = 1, overrides: Mapping[str, str] | None = None
) -> EnginePlan:
    """The plan for `gpu.free` bytes. `overrides` replaces flags; those it does not know are passed on.

    Raises ValueError (EnginePlanError and ModelFolderError among it) with one sentence.
    """
    given = dict(overrides or {})
    tp = integer_option(given, "tp", tp)
    try:
        model = model_memory(folder, tp)
    except ValueError as error:
        raise EnginePlanError(f"{folder.name} cannot be planned: {error}.") from None
    tokens = image_tokens(folder, workload.image_size)
    request = workload.images * tokens + TEXT_TOKENS
    free = left_by_weights(gpu, model)
    prefill = integer_option(given, "max-prefill-token-num", _prefill(model, free, tokens))
    eager = boolean_option(given, "eager-mode", not gpu.bf16)
    graphs = 0 if eager else GRAPHS
    if graphs and tp == 1 and folder.architecture == PICTURE_GRAPHS_OF:
        graphs += PICTURE_GRAPHS
    asked = fraction_option(given, "cache-max-entry-count")

    def sized(batch: int) -> tuple[KvCache, float, int]:
        """The cache for so many answers at once, the fraction that makes it, and what the steps need. Raises NoRoom."""
        needed = activations(folder, prefill, batch, model.vocabulary) + graphs + int(MARGIN * gpu.memory)
        share = asked or _safe_fraction(free, runtime_reserve(prefill, batch, model.vocabulary), needed)
        return kv_cache(model, free, share, prefill, batch), share, needed

    wanted = integer_option(given, "max-batch-size", workload.concurrency or 0)
    problems: list[Problem] = []
    if folder.architecture not in PYTORCH_ARCHITECTURES:
        problems.append(
            Problem(
                f"LMDeploy's PyTorch engine has no {folder.architecture or 'model without an architecture'}.",
                "use --engine transformers, or a server that has it with --engine URL",
            )
        )
    batch, sessions, share, needed = wanted or 1, 0, asked or 0.0, 0
    cache: KvCache | None = None
    try:
        cache, share, needed = sized(batch)
        if not wanted:
            batch = max(1, min(MAX_BATCH, cache.tokens // request))
            cache, share, needed = sized(batch)
        sessions = cache.tokens // request
    except NoRoom:
        problems.append(does_not_fit(folder, gpu, model, tp, free))
    plan = EnginePlan(
        model=folder.name,
        gpu=gpu,
        tp=tp,
        weights=model.weights,
        free=free,
        reserve=runtime_reserve(prefill, batch, model.vocabulary),
        activations=needed,
        token_bytes=model.token,
        image_tokens=tokens,
        request_tokens=request,
        cache=cache,
        sessions=sessions,
        by_fraction={f: _tokens(model, free, f, prefill, batch) for f in sorted({*FRACTIONS, share} - {0.0})},
        image_pixels=0,
        problems=problems,
    )
    if cache is not None:
        session = integer_option(given, "session-len", session_length(folder, workload, cache, request))
        plan.image_pixels = image_pixels(folder, session, prefill)
        problems += _shortages(plan, cache, batch, prefill, session)
        plan.choices = choices(folder, plan, cache, share, batch, prefill, session, eager, given)
    return plan


def image_tokens(folder: ModelFolder, size: tuple[int, int]) -> int:
    """Tokens of the language model that an image of `size` (width, height in pixels) takes."""
    family = find_architecture(folder.architecture)
    if family is not None and family.image_tokens is not None:
        return family.image_tokens
    unit = (folder.patch_size or 14) * folder.merge_size
    width, height = smart_resize(size, unit, *folder.image_pixel_limits)
    return width * height // unit**2


def _safe_fraction(free: int, reserve: int, needed: int) -> float:
    """The largest share of what is left beside the reserve, in hundredths, that leaves `needed` bytes."""
    if free <= reserve:
        return MAX_FRACTION
    return min(MAX_FRACTION, max(0.01, math.floor((free - needed) / (free - reserve) * 100) / 100))


def _prefill(model: ModelMemory, free: int, tokens: int) -> int:
    fits = [b for b in PREFILL_BUDGETS if runtime_reserve(b, 0, model.vocabulary) <= PREFILL_SHARE * free]
    budget = fits[0] if fits else PREFILL_BUDGETS[-1]
    while budget < tokens:
        budget *= 2
    return budget


def session_length(folder: ModelFolder, workload: Workload, cache: KvCache, request: int) -> int:
    """As long as the cache and the model allow: memory is taken by the tokens that are there, not by this limit."""
    if workload.session_len is not None:
        return workload.session_len
    longest = min(cache.longest_session, max(LONG_SESSION, request))
    return min(longest, folder.max_position_embeddings or longest)


def image_pixels(folder: ModelFolder, session: int, prefill: int | None = None) -> int:
    """The maximum number of pixels of an image in a session of so many tokens; 0 where its size does not matter.

    LMDeploy never splits an image: one that is larger than the prefill budget raises the budget, and the memory.
    """
    room = session - SHORT_TEXT
    max_tokens = room if prefill is None else min(prefill, room)
    family = find_architecture(folder.architecture)
    if family is not None and family.image_tokens is not None:
        return 0
    pixels = max(1, max_tokens) * ((folder.patch_size or 14) * folder.merge_size) ** 2
    return min(pixels, folder.image_pixel_limits[1] or pixels)


def _tokens(model: ModelMemory, free: int, fraction: float, prefill: int, batch: int) -> int:
    try:
        return kv_cache(model, free, fraction, prefill, batch).tokens
    except NoRoom:
        return 0


def does_not_fit(folder: ModelFolder, gpu: Gpu, model: ModelMemory, tp: int, free: int) -> Problem:
    short = "the weights alone" if free < 0 else "the weights and one prefill step"
    what = f"{short[0].upper()}{short[1:]} need more than the {gpu.free / GIB:.2f} GiB that are free on the {gpu.name}"
    what += f": weights {model.weights / GIB:.2f} GiB, CUDA's context {CONTEXT / GIB:.2f} GiB."
    cards = [card.name for card in CARDS.values() if card.memory > gpu.memory and _roomy(folder, card, tp)]
    more = [n for n in (2, 4, 8) if n > tp and _roomy(folder, gpu, n)]
    ways = [f"take a card such as the {cards[0]}"] if cards else []
    ways += [f"share it over {more[0]} of these cards with --tp {more[0]}"] if more else []
    return Problem(what, " or ".join(ways) or "take a smaller or a quantised (AWQ) model")


def _roomy(folder: ModelFolder, gpu: Gpu, tp: int) -> bool:
    """Whether the card holds its share of the weights and as much as a fifth of them for everything else."""
    try:
        return model_memory(folder, tp).weights * 1.2 + CONTEXT + 2 * GIB < gpu.memory
    except ValueError:
        return False


def _shortages(plan: EnginePlan, cache: KvCache, batch: int, prefill: int, session: int) -> list[Problem]:
    problems = []
    tokens = plan.request_tokens
    if tokens > session:
        change = f"--session-len {math.ceil(tokens / 1024) * 1024}, fewer images or smaller ones (--image-size)"
        problems.append(Problem(f"A request of {tokens:,} tokens is longer than a session of {session:,}.", change))
    if session > cache.longest_session:
        change = f"at most --session-len {cache.longest_session}"
        problems.append(Problem(f"The cache holds {cache.tokens:,} tokens, a session may have {session:,}.", change))
    if batch > plan.sessions:
        what = (
            f"{counted(batch, f'request of {tokens:,} tokens needs', f'requests of {tokens:,} tokens need')} "
            f"{batch * tokens:,} tokens; the cache holds {cache.tokens:,}."
        )
        problems.append(Problem(what, f"--concurrency {max(1, plan.sessions)}, or the rest waits inside the engine"))
    if cache.prefill_tokens != prefill:
        what = f"LMDeploy would lower the prefill budget from {prefill:,} to {cache.prefill_tokens:,} tokens."
        problems.append(Problem(what, f"--engine-arg max-prefill-token-num={cache.prefill_tokens}"))
    left = plan.free - cache.tokens * plan.token_bytes
    if left < plan.activations:
        what = f"Beside the cache {left / GIB:.2f} GiB are left; a step may need {plan.activations / GIB:.2f} GiB."
        problems.append(Problem(what, "a smaller cache-max-entry-count or max-prefill-token-num"))
    return problems
