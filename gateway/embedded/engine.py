"""The waiting list and the thread that generates: batch after batch, one call of transformers' `generate` each."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from gateway.embedded.metrics import Metrics
from gateway.embedded.model import LoadedModel
from gateway.embedded.prompt import Prompt, answer_limit, collate, make_prompt
from gateway.embedded.protocol import GenerationRequest, TokenLogProb
from gateway.embedded.sampling import Sampler, log_probs
from gateway.embedded.text import AnswerText

# How long a batch that is not full waits for rows that are about to come. Without it, clients that ask again as soon as
# they are answered fall into two groups that take turns, and half of every batch stays empty.
GATHER_SECONDS = 0.02
# A row joins a batch if at most a quarter of it is padding, or if it has at most this many positions with its padding.
SMALL_BATCH = 8192


@dataclass(frozen=True)
class Piece:
    """What a choice has new for its client. tokens: generated so far; error: generation failed."""

    choice: int
    text: str = ""
    log_probs: Sequence[TokenLogProb] = ()
    tokens: int = 0
    finish_reason: str | None = None
    error: bool = False


@dataclass(eq=False)
class Row:
    """One choice of a request. `aborted` may be set from any thread; all else belongs to the generating thread."""

    prompt: Prompt
    choice: int
    sampler: Sampler
    text: AnswerText
    max_tokens: int
    top_log_probs: int | None
    pieces: asyncio.Queue[Piece]
    streamed: bool
    aborted: bool = False
    finish_reason: str | None = None
    tokens: int = 0
    # Log-probabilities of tokens whose text is held back, with the position at which their text begins.
    held: list[tuple[int, TokenLogProb]] = field(default_factory=list)
    unsent: str = ""
    log_probs: list[TokenLogProb] = field(default_factory=list)

    def accept(self, data: bytes, entry: TokenLogProb | None, *, end: bool) -> Piece | None:
        """Takes the next token: its bytes and log-probabilities; `end` for a token that ends the answer.

        Returns what is ready for the client: of a streamed answer each token that shows, else all of it at its end. The
        end token and tokens inside a stop string count as generated, but have no log-probabilities: those belong to
        the text.
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
            if entry is not None:
                self.held.append((begins, entry))
        all_shown = not self.text.stopped and self.text.decoded == self.text.shown
        while self.held and (all_shown or self.held[0][0] < self.text.shown):
            self.log_probs.append(self.held.pop(0)[1])
        if self.finish_reason is None and not (self.streamed and (self.unsent or self.log_probs)):
            return None
        piece = Piece(self.choice, self.unsent, self.log_probs, self.tokens, self.finish_reason)
        self.unsent, self.log_probs = "", []
        return piece


class WaitingList:
    """Rows that wait for a batch. Safe to use from any thread."""

    def __init__(self, max_batch_size: int, metrics: Metrics) -> None:
        self.max_batch_size = max_batch_size
        self.metrics = metrics
        self._rows: list[Row] = []
        self._changed = threading.Condition()
        self._preparing = 0
        self._expected = 0
        self._closed = False

    def preparing(self, change: int) -> None:
        """Counts requests whose rows are about to be added."""
        with self._changed:
            self._preparing += change
            self._changed.notify()

    def add(self, rows: Sequence[Row]) -> None:
        with self._changed:
            self._rows.extend(rows)
            self._report()

    def remove(self, rows: Sequence[Row]) -> int:
        """Takes rows out; returns how many were still waiting."""
        with self._changed:
            before = len(self._rows)
            self._rows = [row for row in self._rows if row not in rows]
            self._report()
            return before - len(self._rows)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[Row]:
        """Waits for rows, then takes a batch: the oldest and those nearest to it in prompt length. [] when closed."""
        with self._changed:
            self._expected += len(self._rows)  # the last batch's clients may ask again, beside those already waiting
            self._changed.wait_for(lambda: self._rows or self._closed)
            deadline = time.monotonic() + GATHER_SECONDS
            while not self._gathered() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._closed or not self._rows:
                return []
            batch = choose_batch(self._rows, self.max_batch_size)
            self._rows = [row for row in self._rows if row not in batch]
            self._expected = len(batch)
            self._report()
            return batch

    @property
    def closed(self) -> bool:
        return self._closed

    def _gathered(self) -> bool:
        enough = self.max_batch_size if self._preparing else min(self._expected, self.max_batch_size)
        return self._closed or len(self._rows) >= enough

    def _report(self) -> None:
        self.metrics.waiting.set(len(self._rows))
        self._changed.notify()


def choose_batch(rows: list[Row], size: int) -> list[Row]:
    """At most `size` rows: the oldest, then by nearness in prompt length, without much padding."""
    oldest = rows[0]
    batch, longest, total = [oldest], oldest.prompt.length, oldest.prompt.length
    for row in sorted(rows[1:], key=lambda row: abs(row.prompt.length - oldest.prompt.length)):
        positions = max(longest, row.prompt.length) * (len(batch) + 1)
        if len(batch) < size and (positions <= SMALL_BATCH or positions * 3 <= 4 * (total + row.prompt.length)):
            batch.append(row)
            longest, total = max(longest, row.prompt.length), total + row.prompt.length
    return batch


class Batch:
    """The rows of one call of `generate`, which calls `choose` and then `done` after every forward pass."""

    def __init__(self, rows: list[Row], loaded: LoadedModel, engine: Engine) -> None:
        self.rows = rows
        self.loaded = loaded
        self.engine = engine

    def generate(self) -> None:
        model = self.loaded.model
        features = collate([row.prompt for row in self.rows], self.loaded.pad_id)
        for name, tensor in features.items():
            features[name] = tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(row.max_tokens for row in self.rows),
            pad_token_id=self.loaded.pad_id,
        )
        with torch.inference_mode():
            model.generate(
                **features,
                generation_config=config,
                logits_processor=LogitsProcessorList([self.choose]),
                stopping_criteria=StoppingCriteriaList([self.done]),
            )

    def choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Draws each row's next token and returns scores [rows, vocabulary] that leave generate no other choice.

        Raises FloatingPointError if the model's logits are not finite.
        """
        logits = scores.float().cpu()
        best, greedy = (tensor.tolist() for tensor in logits.max(-1))
        pieces: list[tuple[Row, Piece]] = []
        chosen = []
        for i, row in enumerate(self.rows):
            if row.finish_reason is None and row.aborted:
                row.finish_reason = "abort"
                self.engine.ended(row)
            if row.finish_reason is not None:
                chosen.append(self.loaded.pad_id)
                continue
            if not abs(best[i]) < float("inf"):
                raise FloatingPointError("The model's logits are not finite.")
            token = greedy[i] if row.sampler.plain_greedy else row.sampler.pick(logits[i])
            chosen.append(token)
            piece = self._accept(row, token, logits[i])
            if piece is not None:
                pieces.append((row, piece))
        self.engine.send(pieces)
        forced = torch.full_like(scores, float("-inf"))
        forced[torch.arange(len(chosen)), torch.tensor(chosen)] = 0.0
        return forced

    def done(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """[rows], True for rows that have ended."""
        ended = [row.finish_reason is not None for row in self.rows]
        return torch.tensor(ended, device=input_ids.device)

    def _accept(self, row: Row, token: int, logits: torch.Tensor) -> Piece | None:
        entry = None
        if row.top_log_probs is not None:
            raw = self.loaded.token_bytes.raw
            log_prob, top = log_probs(logits, token, row.top_log_probs)
            entry = TokenLogProb(raw(token), log_prob, [(raw(other), value) for other, value in top])
        piece = row.accept(self.loaded.token_bytes.shown(token), entry, end=token in self.loaded.eos_ids)
        self.engine.metrics.generation_tokens.inc()
        if row.finish_reason is not None:
            self.engine.ended(row)
        return piece


class Engine:
    """A loaded model behind a waiting list. `run` is the generating thread; the rest is for the event loop `loop`."""

    def __init__(
        self, loaded: LoadedModel, max_batch_size: int, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.loaded = loaded
        self.metrics = metrics
        self.waiting = WaitingList(max_batch_size, metrics)
        self._loop = loop

    def make_rows(self, request: GenerationRequest) -> list[Row]:
        """One row per choice, ready for `submit`; slow, for a worker thread. Raises ApiError 400."""
        prompt = make_prompt(self.loaded.processor, request)
        max_tokens = answer_limit(prompt, request, self.loaded.context)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        return [
            Row(
                prompt=prompt,
                choice=choice,
                sampler=Sampler(request.params, prompt.ids, self.loaded.vocab_size, choice),
                text=AnswerText(request.stop),
                max_tokens=max_tokens,
                top_log_probs=request.top_logprobs,
                pieces=pieces,
                streamed=request.stream,
            )
            for choice in range(request.n)
        ]

    def prompt_ids(self, request: GenerationRequest) -> list[int]:
        """The prompt's tokens; slow, for a worker thread. Raises ApiError 400."""
        ids: list[int] = make_prompt(self.loaded.processor, request).ids.tolist()
        return ids

    def submit(self, rows: list[Row]) -> None:
        self.waiting.add(rows)

    def abort(self, rows: list[Row]) -> None:
        """Gives rows up: out of the waiting list at once, out of a running batch at its next token."""
        for row in rows:
            row.aborted = True
        self.metrics.finished.labels("abort").inc(self.waiting.remove(rows))

    def run(self) -> None:
        """Generates until `stop`."""
        while not self.waiting.closed:
            rows = self.waiting.take()
            if not rows:
                continue
            self.metrics.batch_size.observe(len(rows))
            self.metrics.running.inc(len(rows))
            self.metrics.prompt_tokens.inc(sum(row.prompt.length for row in rows))
            self.metrics.images.inc(sum(row.prompt.images for row in rows))
            try:
                Batch(rows, self.loaded, self).generate()
            except Exception:  # whatever happens in one batch, the next one gets its chance
                traceback.print_exc()
                failed = [row for row in rows if row.finish_reason is None]
                for row in failed:
                    row.finish_reason = "error"
                    self.ended(row)
                self.send([(row, Piece(row.choice, error=True)) for row in failed])

    def stop(self) -> None:
        """Ends `run` before its next batch."""
        self.waiting.close()

    def ended(self, row: Row) -> None:
        self.metrics.running.dec()
        self.metrics.finished.labels(row.finish_reason).inc()

    def send(self, pieces: list[tuple[Row, Piece]]) -> None:
        """Hands pieces to the event loop, all in one call: waking it costs more than the rest."""
        if pieces:
            self._loop.call_soon_threadsafe(_deliver, pieces)


def _deliver(pieces: list[tuple[Row, Piece]]) -> None:
    for row, piece in pieces:
        row.pieces.put_nowait(piece)
