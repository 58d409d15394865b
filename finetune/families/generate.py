"""Greedy answers in batches, from features the vision tower has made once for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.families.batch import Batch, collate_prompts
from finetune.families.features import FrozenFeatures
from finetune.families.forward import hidden_states


def greedy(
    model: Any,
    prompts: Sequence[Encoded],
    features: FrozenFeatures,
    eos: Sequence[int],
    max_new_tokens: int,
    device: torch.device,
) -> list[list[int]]:
    """The answer ids of each prompt, without the end-of-turn token; the likeliest token each time.

    Prompts are padded on the left; an answer that has ended leaves the batch, so one long answer does not hold the
    others' compute. To be called under `torch.no_grad()`.
    """
    from transformers import DynamicCache

    batch = collate_prompts(prompts, device)
    cache = DynamicCache()
    states = hidden_states(model, batch, features.get(batch.images), cache)[:, -1]
    # Text goes on from the text before it: the times of a video in it may be larger.
    position = torch.tensor([int(prompt.positions[:, -1].max()) + 1 for prompt in prompts], device=device)
    ends = torch.tensor(list(eos), device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    active = np.arange(len(prompts))
    attended, length = batch.attended, batch.ids.shape[1]
    for count in range(1, max_new_tokens + 1):
        tokens = model.lm_head(states).float().argmax(-1)
        going = ~torch.isin(tokens, ends)
        for index, token, goes in zip(active, tokens.tolist(), going.tolist(), strict=True):
            if goes:
                answers[index].append(token)
        if count == max_new_tokens or not going.any():
            break
        if not going.all():
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            active, tokens, position = active[keep.cpu().numpy()], tokens[keep], position[keep]
            attended = None if attended is None else attended[keep]
        if attended is not None:
            attended = torch.cat([attended, attended.new_ones(len(tokens), 1)], dim=1)
        positions = position.expand(4, 1, -1).transpose(1, 2).clone()  # [4, B, 1]
        positions[0] = length
        step = Batch(tokens[:, None], positions, attended, [])
        states = hidden_states(model, step, None, cache)[:, -1]
        position, length = position + 1, length + 1
    return answers
