"""The generating thread: batch after batch, one call of transformers' `generate` each."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from gateway.embedded.generation.grammar import GrammarError
from gateway.embedded.generation.model import LoadedModel
from gateway.embedded.generation.prompt import answer_limit, collate, make_prompt
from gateway.embedded.generation.sampling import Sampler, log_probs
from gateway.embedded.generation.sequences import Piece, RunningSequence
from gateway.embedded.generation.text import Detokenizer
from gateway.embedded.generation.waiting_list import WaitingList
from gateway.embedded.metrics import EmbeddedMetrics
from gateway.embedded.protocol import GenerationRequest, TokenLogProb


class RunningBatch:
    """The sequences of one call of `generate`, which calls `choose` and then `done` after every forward pass."""

    def __init__(self, sequences: list[RunningSequence], loaded: LoadedModel, batcher: Batcher) -> None:
        self.sequences = sequences
        self.loaded = loaded
        self.batcher = batcher

    def generate(self) -> None:
        """Generates until every sequence has ended. Raises whatever the model raises."""
        model = self.loaded.model
        features = collate([sequence.prompt for sequence in self.sequences], self.loaded.pad_id)
        for name, tensor in features.items():
            features[name] = tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(sequence.max_tokens for sequence in self.sequences),
            pad_token_id=self.loaded.pad_id,
        )
        with torch.inference_mode(), self.loaded.adapters.running(self.sequences[0].adapter):
            model.generate(
                **features,
                generation_config=config,
                logits_processor=LogitsProcessorList([self.choose]),
                stopping_criteria=StoppingCriteriaList([self.done]),
            )

    def choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Draws each sequence's next token. input_ids: [sequences, length]; scores: [sequences, vocabulary].

        Returns scores that leave `generate` no other choice than the tokens drawn. Raises FloatingPointError if the
        model's logits are not finite.
        """
        logits = scores.float().cpu()
        best, greedy = (tensor.tolist() for tensor in logits.max(-1))
        pieces: list[tuple[RunningSequence, Piece]] = []
        chosen = []
        for i, sequence in enumerate(self.sequences):
            if sequence.finish_reason is None and sequence.aborted:
                sequence.finish_reason = "abort"
                self.batcher.ended(sequence)
            if sequence.finish_reason is not None:
                chosen.append(self.loaded.pad_id)
                continue
            if not abs(best[i]) < float("inf"):
                raise FloatingPointError("The model's logits are not finite.")
            likeliest = sequence.constraint is None and sequence.sampler.plain_greedy
            try:
                token = greedy[i] if likeliest else sequence.pick(logits[i])
            except GrammarError as error:  # only this sequence's: the rest of the batch goes on
                print(f"An answer's grammar failed: {error}", file=sys.stderr)
                chosen.append(self.loaded.pad_id)
                pieces.append((sequence, self.batcher.fail(sequence)))
                continue
            chosen.append(token)
            piece = self._accept(sequence, token, logits[i])
            if piece is not None:
                pieces.append((sequence, piece))
        self.batcher.send(pieces)
        forced = torch.full_like(scores, float("-inf"))
        forced[torch.arange(len(chosen)), torch.tensor(chosen)] = 0.0
        return forced

    def done(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """[sequences], True for sequences that have ended."""
        ended = [sequence.finish_reason is not None for sequence in self.sequences]
        return torch.tensor(ended, device=input_ids.device)

    def _accept(self, sequence: RunningSequence, token: int, logits: torch.Tensor) -> Piece | None:
        entry = None
        if sequence.top_log_probs is not None:
            raw = self.loaded.token_bytes.raw
            log_prob, top = log_probs(logits, token, sequence.top_log_probs)
            entry = TokenLogProb(raw(token), log_prob, [(raw(other), value) for other, value in top])
        piece = sequence.accept(self.loaded.token_bytes.shown(token), entry, end=token in self.loaded.eos_ids)
        self.batcher.metrics.generation_tokens.inc()
        if sequence.finish_reason is not None:
            self.batcher.ended(sequence)
        return piece


class Batcher:
    """A loaded model behind a waiting list. `run` is the generating thread; the rest is for the event loop `loop`."""

    def __init__(
        self, loaded: LoadedModel, max_batch_size: int, metrics: EmbeddedMetrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.loaded = loaded
        self.metrics = metrics
        self.waiting = WaitingList(max_batch_size, metrics)
        self._loop = loop

    def make_sequences(self, request: GenerationRequest) -> list[RunningSequence]:
        """One sequence per choice, ready for `submit`. Slow: call it from a worker thread. Raises ApiError 400."""
        prompt = make_prompt(self.loaded.processor, request)
        max_tokens = answer_limit(prompt, request, self.loaded.context)
        constraint = self.loaded.grammars.compile(request)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        return [
            RunningSequence(
                prompt=prompt,
                choice=choice,
                sampler=Sampler(request.params, prompt.ids, self.loaded.vocab_size, choice),
                text=Detokenizer(request.stop),
                max_tokens=max_tokens,
                top_log_probs=request.top_logprobs,
                pieces=pieces,
                streamed=request.stream,
                constraint=None if constraint is None else constraint.copy(),
                adapter=request.model if request.model in self.loaded.adapters.digests else None,
            )
            for choice in range(request.n)
        ]

    def prompt_ids(self, request: GenerationRequest) -> list[int]:
        """The prompt's tokens. Slow: call it from a worker thread. Raises ApiError 400."""
        ids: list[int] = make_prompt(self.loaded.processor, request).ids.tolist()
        return ids

    def submit(self, sequences: list[RunningSequence]) -> None:
        self.waiting.add(sequences)

    def abort(self, sequences: list[RunningSequence]) -> None:
        """Ends sequences early: waiting ones at once, running ones at their next token."""
        for sequence in sequences:
            sequence.aborted = True
        self.metrics.finished.labels("abort").inc(self.waiting.remove(sequences))

    def run(self) -> None:
        """Generates until `stop`."""
        while not self.waiting.closed:
            sequences = self.waiting.take()
            if not sequences:
                continue
            self.metrics.batch_size.observe(len(sequences))
            self.metrics.running.inc(len(sequences))
            self.metrics.prompt_tokens.inc(sum(sequence.prompt.length for sequence in sequences))
            self.metrics.images.inc(sum(sequence.prompt.images for sequence in sequences))
            try:
                RunningBatch(sequences, self.loaded, self).generate()
            except Exception:  # a batch that fails must not keep the next one from running
                traceback.print_exc()
                failed = [sequence for sequence in sequences if sequence.finish_reason is None]
                self.send([(sequence, self.fail(sequence)) for sequence in failed])

    def stop(self) -> None:
        """Ends `run` before its next batch."""
        self.waiting.close()

    def ended(self, sequence: RunningSequence) -> None:
        """Counts a sequence that has ended."""
        self.metrics.running.dec()
        self.metrics.finished.labels(sequence.finish_reason).inc()

    def fail(self, sequence: RunningSequence) -> Piece:
        """Ends a sequence with an error; returns the piece that says so."""
        sequence.finish_reason = "error"
        self.ended(sequence)
        return Piece(sequence.choice, error=True)

    def send(self, pieces: list[tuple[RunningSequence, Piece]]) -> None:
        """Hands pieces to the event loop, all in one call, because waking the loop costs more than the rest."""
        if pieces:
            self._loop.call_soon_threadsafe(_deliver, pieces)


def _deliver(pieces: list[tuple[RunningSequence, Piece]]) -> None:
    for sequence, piece in pieces:
        sequence.pieces.put_nowait(piece)
