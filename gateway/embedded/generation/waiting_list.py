"""Sequences that wait for a batch, and which of them are generated together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from gateway.embedded.generation.sequences import RunningSequence
from gateway.embedded.metrics import EmbeddedMetrics

# How long a batch that is not full waits for sequences that are about to come. Without it, clients that ask again as
# soon as they are answered fall into two groups that take turns, and half of every batch stays empty.
GATHER_SECONDS = 0.02
# A sequence joins a batch if at most a quarter of the batch is padding, or if the batch has at most this many positions
# with its padding.
SMALL_BATCH = 8192


class WaitingList:
    """Sequences that wait for a batch. Safe to use from any thread."""

    def __init__(self, max_batch_size: int, metrics: EmbeddedMetrics) -> None:
        self.max_batch_size = max_batch_size
        self.metrics = metrics
        self._sequences: list[RunningSequence] = []
        self._changed = threading.Condition()
        self._preparing = 0
        self._expected = 0
        self._closed = False

    def preparing(self, change: int) -> None:
        """Adds `change` to the number of requests whose sequences are about to be added."""
        with self._changed:
            self._preparing += change
            self._changed.notify()

    def add(self, sequences: Sequence[RunningSequence]) -> None:
        with self._changed:
            self._sequences.extend(sequences)
            self._report()

    def remove(self, sequences: Sequence[RunningSequence]) -> int:
        """Removes the given sequences; returns how many of them were still waiting."""
        with self._changed:
            before = len(self._sequences)
            self._sequences = [sequence for sequence in self._sequences if sequence not in sequences]
            self._report()
            return before - len(self._sequences)

    def close(self) -> None:
        """Ends every `take`, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[RunningSequence]:
        """Waits for sequences, then removes a batch of them and returns it; [] once closed."""
        with self._changed:
            # The last batch's clients may ask again, and join those who are already waiting.
            self._expected += len(self._sequences)
            self._changed.wait_for(lambda: self._sequences or self._closed)
            deadline = time.monotonic() + GATHER_SECONDS
            while not self._gathered() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._closed or not self._sequences:
                return []
            batch = choose_batch(self._sequences, self.max_batch_size)
            self._sequences = [sequence for sequence in self._sequences if sequence not in batch]
            self._expected = len(batch)
            self._report()
            return batch

    @property
    def closed(self) -> bool:
        return self._closed

    def _gathered(self) -> bool:
        enough = self.max_batch_size if self._preparing else min(self._expected, self.max_batch_size)
        return self._closed or len(self._sequences) >= enough

    def _report(self) -> None:
        self.metrics.waiting.set(len(self._sequences))
        self._changed.notify()


def choose_batch(sequences: list[RunningSequence], size: int) -> list[RunningSequence]:
    """At most `size` sequences of one adapter: the oldest, then those nearest to it in length, with little padding."""
    oldest, *others = sequences
    others = [sequence for sequence in others if sequence.adapter == oldest.adapter]
    batch, longest, total = [oldest], oldest.prompt.length, oldest.prompt.length
    for sequence in sorted(others, key=lambda one: abs(one.prompt.length - oldest.prompt.length)):
        length = sequence.prompt.length
        positions = max(longest, length) * (len(batch) + 1)
        if len(batch) < size and (positions <= SMALL_BATCH or positions * 3 <= 4 * (total + length)):
            batch.append(sequence)
            longest, total = max(longest, length), total + length
    return batch
