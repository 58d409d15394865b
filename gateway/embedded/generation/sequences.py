"""One choice of a request while it is being generated, and the pieces of it that are ready for its client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gateway.embedded.generation.grammar import Constraint
from gateway.embedded.generation.prompt import Prompt
from gateway.embedded.generation.sampling import Sampler
from gateway.embedded.generation.text import Detokenizer
from gateway.embedded.protocol import TokenLogProb


@dataclass(frozen=True)
class Piece:
    """The new part of a choice. tokens: generated so far; error: generation failed and the choice has ended."""

    choice: int
    text: str = ""
    log_probs: Sequence[TokenLogProb] = ()
    tokens: int = 0
    finish_reason: str | None = None
    error: bool = False


@dataclass(eq=False)
class RunningSequence:
    """The state of one choice. `aborted` may be set from any thread; all else belongs to the generating thread.

    prompt, sampler, text: of this choice; max_tokens: generation ends there; top_log_probs: how many alternatives to
    each token are listed, None for no log-probabilities; pieces: the queue that the request's handler reads; streamed:
    whether pieces are sent as they come, or all in one at the end; constraint: the form that the answer must have;
    adapter: the one that answers, None for the base.
    """

    prompt: Prompt
    choice: int
    sampler: Sampler
    text: Detokenizer
    max_tokens: int
    top_log_probs: int | None
    pieces: asyncio.Queue[Piece]
    streamed: bool
    constraint: Constraint | None = None
    adapter: str | None = None
    aborted: bool = False
    finish_reason: str | None = None
    tokens: int = 0
    unsent: str = ""
    log_probs: list[TokenLogProb] = field(default_factory=list)
    # Log-probabilities of tokens whose text is held back, with the position at which their text begins.
    _held_log_probs: list[tuple[int, TokenLogProb]] = field(default_factory=list)

    def pick(self, logits: torch.Tensor) -> int:
        """The next token for logits [vocabulary], as the sampler draws it and the constraint allows it.

        Raises GrammarError.
        """
        if self.constraint is None:
            return self.sampler.pick(logits)
        token = self.sampler.pick(self.constraint.mask(logits))
        self.constraint.consume(token)
        return token

    def accept(self, data: bytes, log_prob: TokenLogProb | None, *, end: bool) -> Piece | None:
        """Adds the next token: its bytes and its log-probabilities; `end` for a token that ends the choice.

        Returns what is ready for the client: for a streamed answer the text of each token, otherwise everything once
        the choice has ended. The end token and tokens inside a stop string count as generated, but have no
        log-probabilities, because those belong to the text.
        """
        self.tokens += 1
        begins = self.text.decoded
        if end:
            self.unsent += self.text.finish()
            self.finish_reason = "stop"
        else:
            self.unsent += self.text.push(data)
            if self.text.stopped:
                self.finish_reason = "stop"
            elif self.tokens == self.max_tokens:
                self.unsent += self.text.finish()
                self.finish_reason = "length"
            if log_prob is not None:
                self._held_log_probs.append((begins, log_prob))
        all_shown = not self.text.stopped and self.text.decoded == self.text.shown
        while self._held_log_probs and (all_shown or self._held_log_probs[0][0] < self.text.shown):
            self.log_probs.append(self._held_log_probs.pop(0)[1])
        if self.finish_reason is None and not (self.streamed and (self.unsent or self.log_probs)):
            return None
        piece = Piece(self.choice, self.unsent, self.log_probs, self.tokens, self.finish_reason)
        self.unsent, self.log_probs = "", []
        return piece
