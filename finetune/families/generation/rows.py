"""The rows that are being answered, in tensors of fixed place, and the step that adds a token to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune.families.generation.attention import one_token_a_row
from finetune.families.generation.slots import Slots, Stepping


class Rows:
    """N rows, one a slot.

    tokens: [N] each row's last token, not yet read; lengths: [N] tokens read; positions: [N] M-RoPE's position of
    the last token, the same in its three parts; answers: [N, max_new_tokens + 1] tokens, the last column being for
    what ended rows still make; counts: [N] of those that count, an end token included; alive: [N] bool.
    """

    def __init__(self, model: Any, slots: Slots, ends: Sequence[int], max_new_tokens: int) -> None:
        self.model, self.slots, self.max_new_tokens = model, slots, max_new_tokens
        device = model.lm_head.weight.device
        self.ends = torch.tensor(list(ends), device=device)
        self.tokens, self.lengths, self.positions, self.counts = (
            torch.zeros(slots.count, dtype=torch.long, device=device) for _ in range(4)
        )
        self.answers = torch.zeros(slots.count, max_new_tokens + 1, dtype=torch.long, device=device)
        self.alive = torch.zeros(slots.count, dtype=torch.bool, device=device)

    def begin(self, rows: Any, states: Any, lengths: Any, positions: Any) -> None:
        """Puts prompts that were read into slots, with the first token of each answer.

        rows: [B] slots; states: [B, hidden] of each prompt's last token; lengths, positions: [B], of the next token.
        """
        tokens = self._likeliest(states)
        self.tokens[rows], self.lengths[rows], self.positions[rows] = tokens, lengths, positions
        self.answers[rows, 0], self.counts[rows] = tokens, torch.ones_like(tokens)
        self.alive[rows] = self._goes_on(tokens, self.counts[rows])

    def step(self, width: int, seen: int) -> None:
        """Adds a token to those of the first `width` rows that have not ended; `seen`: at least every row's length."""
        tokens, lengths, positions, counts, alive = (
            kept[:width] for kept in (self.tokens, self.lengths, self.positions, self.counts, self.alive)
        )
        places = torch.arange(seen, device=tokens.device)
        core = self.model.model
        with one_token_a_row(core.language_model):
            states = core.language_model(
                inputs_embeds=core.get_input_embeddings()(tokens[:, None]),
                position_ids=torch.stack([lengths, positions, positions, positions])[..., None],
                attention_mask=(places <= lengths[:, None])[:, None, None],
                past_key_values=Stepping(self.slots, lengths, seen),
                use_cache=True,
            ).last_hidden_state[:, -1]
        new = self._likeliest(states)
        column = counts.masked_fill(~alive, self.max_new_tokens)
        self.answers[:width].scatter_(1, column[:, None], new[:, None])
        tokens.copy_(torch.where(alive, new, tokens))
        for kept in (lengths, positions, counts):
            kept.add_(alive)
        alive.logical_and_(self._goes_on(new, counts))

    def move(self, source: Any, target: Any) -> None:
        """Copies rows to other slots. source, target: [n] slots."""
        self.slots.move(source, target)
        for kept in (self.tokens, self.lengths, self.positions, self.counts, self.answers, self.alive):
            kept[target] = kept[source]

    def answered(self, rows: Sequence[int]) -> list[list[int]]:
        """The answers in these slots, without an end token."""
        at = torch.tensor(rows, device=self.tokens.device)
        ends = set(self.ends.tolist())
        found = []
        for tokens, count in zip(self.answers[at].tolist(), self.counts[at].tolist(), strict=True):
            answer = tokens[:count]
            found.append(answer[:-1] if answer[-1] in ends else answer)
        return found

    def _likeliest(self, states: Any) -> Any:
        return self.model.lm_head(states).float().argmax(-1)

    def _goes_on(self, tokens: Any, counts: Any) -> Any:
        return (tokens[:, None] != self.ends).all(-1) & (counts < self.max_new_tokens)
