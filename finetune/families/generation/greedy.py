"""Greedy answers to many prompts at once: as many rows as the memory holds, and a new one for each that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from finetune.compute.graphs import Graphs
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of, media_of
from finetune.errors import FinetuneError
from finetune.families.batch import collate_prompts
from finetune.families.features import FrozenFeatures
from finetune.families.forward import hidden_states
from finetune.families.generation.rows import Rows
from finetune.families.generation.slots import Filling, Slots

MAX_ROWS = {"cpu": 32, "cuda": 128}  # answered at once, unless the recipe says how many
CPU_SHARE = 0.125  # of the machine's memory, for slots
SLOTS_SHARE, PROMPTS_SHARE = 0.5, 0.25  # of the free memory: for slots, and for reading prompts
PROMPT_BYTES = 100  # that reading a token of a prompt takes, for each of its hidden values, the tower's work included
PROMPT_TOKENS = 16384  # read at once: more make no GPU quicker
AHEAD = 6  # groups of prompts whose images are decoded ahead
STEPS = 4  # between two looks at which rows have ended, on a GPU
PLACES = {"cpu": 32, "cuda": 256}  # steps attend over multiples of so many tokens: few graphs
GRAPHS = 64  # steps as CUDA graphs, one for each width and number of places: a step is one launch, not a thousand
GRAPHS_FROM = 16  # prompts: capturing graphs for fewer costs more than it saves


def greedy(
    model: Any,
    prompts: Sequence[Encoded],
    features: FrozenFeatures,
    eos: Sequence[int],
    max_new_tokens: int,
    rows: int | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """(index, answer ids) of each prompt as it is answered, without the end-of-turn token; the likeliest token always.

    rows: most answered at once; None: what the memory holds. When the GPU is out of memory, half as many are. The
    longest prompts come first, so that this happens at once or not at all. To be resumed under `torch.no_grad()`.
    Raises FinetuneError if one row is too many.
    """
    device = model.lm_head.weight.device
    lengths = lengths_of(prompts)
    order = np.argsort(-lengths, kind="stable").tolist()
    size = _rounded(int(lengths.max(initial=0)) + max_new_tokens, device)
    limits = _limits(model, size, device)
    at_once, tokens = min(rows or limits[0], max(1, len(prompts))), limits[1]
    while order:
        rows_kept = Rows(model, Slots(at_once, size), eos, max_new_tokens)
        run, answered = _Run(model, prompts, order, features, rows_kept, tokens), np.zeros(len(prompts), dtype=bool)
        try:
            for index, answer in run.answers():
                answered[index] = True
                yield index, answer
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                first = prompts[order[0]]
                raise FinetuneError(
                    f"{first.source}: the GPU's memory does not suffice to answer it ({len(first)} tokens); lower "
                    "image_max_pixels, set quantization_bit: 4, or take a larger GPU."
                ) from None
        order = [index for index in order if not answered[index]]
        if order:
            del run, rows_kept
            torch.cuda.empty_cache()
            at_once, tokens = max(1, at_once // 2), max(1, tokens // 2)


def _rounded(places: int, device: torch.device) -> int:
    multiple = PLACES[device.type]
    return -(-places // multiple) * multiple


def _limits(model: Any, size: int, device: torch.device) -> tuple[int, int]:
    """How many rows of `size` tokens to answer at once, and how many tokens of prompts to read at once."""
    config, dtype = model.model.language_model.config, model.lm_head.weight.dtype
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_of_row = size * 2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype.itemsize
    most = MAX_ROWS[device.type]
    if device.type == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(1, min(most, int(CPU_SHARE * memory / bytes_of_row))), PROMPT_TOKENS
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    tokens = int(PROMPTS_SHARE * free / (PROMPT_BYTES * config.hidden_size))
    return max(1, min(most, int(SLOTS_SHARE * free / bytes_of_row))), max(1, min(PROMPT_TOKENS, tokens))


class _Run:
    """Answers prompts, `order` being their indices, longest first. tokens: of prompts, read at once."""

    def __init__(
        self, model: Any, prompts: Sequence[Encoded], order: Sequence[int], features: FrozenFeatures, rows: Rows,
        tokens: int,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.features, self.rows = model, prompts, features, rows
        self.count, self.device = rows.slots.count, rows.tokens.device
        self.lengths, self.media = lengths_of(prompts), media_of(prompts)
        self.groups = _groups(self.lengths, order, tokens, max(1, self.count // 4))
        for group in self.groups[:AHEAD]:
            self._prefetch(group)
        self.width = self.count
        self.free = list(range(self.count))
        self.running: dict[int, int] = {}  # slot -> prompt
        self.made = np.zeros(self.count, dtype=int)  # tokens of each slot's answer, if it has not ended
        on_gpu = self.device.type == "cuda"
        self.steps = STEPS if on_gpu else 1  # on a CPU nothing is gained by not looking
        self.graphs = Graphs(self.device, GRAPHS if len(order) >= GRAPHS_FROM else 0, failed=_raise_out_of_memory)
        self.stepped = False

    def answers(self) -> Iterator[tuple[int, list[int]]]:
        while self.running or self.groups:
            while self.groups and len(self.free) >= len(self.groups[0]):
                self._read(self.groups.pop(0))
            yield from self._ended()
            if self.running:
                self._narrow()
                self._make_tokens()

    def _read(self, group: Sequence[int]) -> None:
        """Reads prompts into free slots, while the images of later ones are decoded."""
        if len(self.groups) >= AHEAD:
            self._prefetch(self.groups[AHEAD - 1])
        chosen = [self.free.pop(0) for _ in group]
        prompts = [self.prompts[index] for index in group]
        batch = collate_prompts(prompts, self.device)
        slots = torch.tensor(chosen, device=self.device)
        states = hidden_states(self.model, batch, self.features.get(batch.images), Filling(self.rows.slots, slots))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        # Text goes on from the text before it: the times of a video in it may be larger.
        positions = torch.tensor([int(prompt.positions[:, -1].max()) + 1 for prompt in prompts], device=self.device)
        last = states[torch.arange(len(prompts), device=self.device), lengths - 1]
        self.rows.begin(slots, last, lengths, positions)
        self.running.update(zip(chosen, group, strict=True))
        self.made[chosen] = 1

    def _make_tokens(self) -> None:
        slots = list(self.running)
        steps = max(1, min(self.steps, self.rows.max_new_tokens - int(self.made[slots].min())))
        self.made[slots] += steps
        longest = max(int(self.lengths[index]) + self.made[slot] for slot, index in self.running.items())
        seen = min(self.rows.slots.size, _rounded(longest, self.device))
        step = partial(self.rows.step, self.width, seen)
        for _ in range(steps):
            if self.stepped:
                self.graphs.run((self.width, seen), step)
            else:
                step()
                self.stepped = True

    def _ended(self) -> Iterator[tuple[int, list[int]]]:
        """The answers that have ended; their slots are free again."""
        if not self.running:
            return
        alive = self.rows.alive.tolist()
        ended = [slot for slot in self.running if not alive[slot]]
        if not ended:
            return
        answers = self.rows.answered(ended)
        indices = [self.running.pop(slot) for slot in ended]
        self.free = sorted([*self.free, *ended])
        yield from zip(indices, answers, strict=True)

    def _narrow(self) -> None:
        """Moves the last rows together once no more come, so that steps are of half as many slots or fewer."""
        width = 1 << (len(self.running) - 1).bit_length()
        if self.groups or width > self.width // 2:
            return
        moved = [slot for slot in self.running if slot >= width]
        targets = [slot for slot in range(width) if slot not in self.running][: len(moved)]
        if moved:
            self.rows.move(*(torch.tensor(slots, device=self.device) for slots in (moved, targets)))
            for slot, target in zip(moved, targets, strict=True):
                self.running[target], self.made[target] = self.running.pop(slot), self.made[slot]
        self.width = width

    def _prefetch(self, group: Sequence[int]) -> None:
        self.features.prefetch([image for index in group for image in self.media[index]])


def _raise_out_of_memory(error: BaseException) -> None:
    """Fewer rows as graphs are quicker than steps without."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error


def _groups(lengths: Any, order: Sequence[int], tokens: int, rows: int) -> list[list[int]]:
    """Prompts to be read at once: of at most so many rows and, padded to the longest, tokens; one at least."""
    groups: list[list[int]] = []
    for index in order:
        if not groups or len(groups[-1]) == rows or (len(groups[-1]) + 1) * int(lengths[groups[-1][0]]) > tokens:
            groups.append([])
        groups[-1].append(index)
    return groups
