"""The losses of preferences, from the log-probabilities of a better and a worse answer.

Where the papers leave it open, averages over tokens and sums of losses are LLaMA-Factory's (`train/dpo/trainer.py`), so
that curves compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Answers:
    """Of B answers: log_probs [B], the summed log-probabilities of their label tokens; tokens [B], how many."""

    log_probs: Any
    tokens: Any

    @property
    def mean(self) -> Any:
        return self.log_probs / self.tokens


def preference_losses(
    chosen: Answers, rejected: Answers, chosen_reference: Any | None, rejected_reference: Any | None, recipe: Recipe
) -> tuple[Any, Any, Any]:
    """(losses, rewards of the chosen, rewards of the rejected answers), [B] each, of pairs of answers.

    chosen_reference, rejected_reference: [B] log-probabilities by the reference; None for losses that need none.
    """
    beta = recipe.pref_beta
    if recipe.needs_reference:
        gains = chosen.log_probs - chosen_reference, rejected.log_probs - rejected_reference
        rewards = beta * gains[0], beta * gains[1]
        if recipe.pref_loss == "sigmoid":
            margins, smoothing = rewards[0] - rewards[1], recipe.dpo_label_smoothing
            losses = -logsigmoid(margins) * (1 - smoothing) - logsigmoid(-margins) * smoothing
        else:  # ipo, over means as its authors have it (https://github.com/huggingface/trl/pull/1265)
            losses = (gains[0] / chosen.tokens - gains[1] / rejected.tokens - 1 / (2 * beta)) ** 2
    else:
        rewards = beta * chosen.mean, beta * rejected.mean
        if recipe.pref_loss == "simpo":
            losses = -logsigmoid(rewards[0] - rewards[1] - recipe.simpo_gamma)
        else:  # orpo
            losses = -chosen.mean - beta * logsigmoid(_log_odds(chosen.mean) - _log_odds(rejected.mean))
    if recipe.pref_ftx:
        losses = losses - recipe.pref_ftx * chosen.mean
    return losses, rewards[0], rewards[1]


def _log_odds(log_prob: Any) -> Any:
    """log(p / (1 - p)) of log(p); a p that rounds to 1 is taken as the next smaller one."""
    log_prob = log_prob.clamp(max=-1e-6)
    return log_prob - torch.log(-torch.expm1(log_prob))
