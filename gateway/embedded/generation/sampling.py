"""Drawing one row's next token. A row has its own generator, so its seed gives the same answer in any batch."""

from __future__ import annotations

import secrets

import torch

from gateway.embedded.protocol import SamplingParams


class Sampler:
    """The sampling state of one choice: its random generator and what its penalties count.

    prompt_ids: [prompt length]. With a seed, choice i of a request draws from seed + i.
    """

    def __init__(self, params: SamplingParams, prompt_ids: torch.Tensor, vocab_size: int, choice: int) -> None:
        self.params = params
        seed = secrets.randbits(63) if params.seed is None else params.seed + choice
        self.generator = torch.Generator().manual_seed(seed)
        # float32 would divide by zero below about 1e-38; long before, only the likeliest token is ever drawn.
        self.greedy = params.temperature < 1e-5
        self.counts = self.seen = None
        if params.presence_penalty or params.frequency_penalty:
            self.counts = torch.zeros(vocab_size)
        if params.repetition_penalty != 1:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[prompt_ids] = True

    @property
    def plain_greedy(self) -> bool:
        """Whether the next token is simply the likeliest."""
        return self.greedy and self.counts is None and self.seen is None

    def pick(self, logits: torch.Tensor) -> int:
        """The next token for logits [vocabulary], which are left as they are."""
        logits = self._penalise(logits)
        token = int(logits.argmax()) if self.greedy else self._draw(logits)
        if self.counts is not None:
            self.counts[token] += 1
        if self.seen is not None:
            self.seen[token] = True
        return token

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        """The repetition penalty covers prompt and answer, as in transformers; the other two the answer, as OpenAI has
        them: logit - count * frequency_penalty - (count > 0) * presence_penalty.
        """
        if self.seen is not None:
            penalty = self.params.repetition_penalty
            logits = torch.where(self.seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        if self.counts is not None:
            logits = logits - self.counts * self.params.frequency_penalty
            logits = logits - (self.counts > 0) * self.params.presence_penalty
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        """Temperature, then top_k, top_p and min_p in transformers' order."""
        params = self.params
        logits = (logits - logits.max()) / params.temperature  # at most 0: a low temperature cannot overflow
        size = logits.shape[-1]
        wanted = min(params.top_k or size, size)
        tokens = None
        if wanted < size or params.top_p < 1:
            logits, tokens = logits.topk(wanted)  # sorted, likeliest first
        probs = logits.softmax(-1)
        if params.top_p < 1:
            before = probs.cumsum(-1) - probs  # the probability of all likelier tokens; 0 for the first
            probs = torch.where(before < params.top_p, probs, 0.0)
        if params.min_p > 0:
            probs = torch.where(probs >= params.min_p * probs.max(), probs, 0.0)
        choice = torch.multinomial(probs, 1, generator=self.generator)
        return int(choice if tokens is None else tokens[choice])


def log_probs(logits: torch.Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The raw log-probability of `token`, and the `top` likeliest tokens with theirs, for logits [vocabulary]."""
    values = logits.log_softmax(-1)
    best = values.topk(top)
    return float(values[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
