"""Which of several plans trains the most rows a second, tried for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of
from finetune.families.base import Feed
from finetune.memory.plan import Plan
from modelfiles import counted

SECONDS = 20.0
TRIED = 4  # plans, the ones of most rows
WORSE = 0.95  # of the best so far: the plans of fewer rows will not be better
LOOKED_AT = 64  # of an epoch's micro-batches, for the lengths that are usual


def quickest(plans: Sequence[Plan], trial: Trial) -> tuple[Plan, str]:
    """The plan of the highest speed, and what was measured, in words.

    plans: the most rows first. If none of those that are tried fits, it is the last.
    """
    deadline = time.monotonic() + SECONDS
    best, fastest, measured = plans[-1], 0.0, []
    for plan in plans[:TRIED]:
        try:
            found = trial.speed(plan)
        except torch.OutOfMemoryError:
            found = 0.0
        _give_memory_back()
        if not found:
            measured.append(f"{counted(plan.size, 'row at once does', 'rows at once do')} not fit")
            continue
        measured.append(f"{plan.size}: {found:.1f} rows/s")
        if found > fastest / WORSE:
            best, fastest = plan, found
        elif found < fastest * WORSE:
            break
        if time.monotonic() > deadline:
            break
    return best, f"tried: {', '.join(measured)}"


def _give_memory_back() -> None:
    """So that what comes next finds the memory that was free before, of the GPU and of the host."""
    torch.cuda.empty_cache()
    if torch.cuda.is_initialized() and hasattr(torch._C, "_host_emptyCache"):  # from torch 2.6 on
        torch._C._host_emptyCache()


@dataclass(frozen=True)
class Tried:
    """What training would be by a plan.

    feed: makes batches; batches: the rows of an epoch's micro-batches, by number; learn: the forward and backward pass
    of what the feed makes of one.
    """

    feed: Feed
    batches: Sequence[list[int]]
    learn: Callable[[Any, Any], Any]


class Trial:
    """Trains rows of a dataset without changing anything.

    prepare: makes of a plan what training would be; forget: drops the gradients.
    """

    def __init__(
        self, rows: Sequence[Encoded], device: torch.device, prepare: Callable[[Plan], Tried],
        forget: Callable[[], None],
    ) -> None:  # fmt: skip
        self.rows, self.device, self.prepare, self.forget = rows, device, prepare, forget
        self.lengths = lengths_of(rows).astype(np.int64)
        self.longest_first = np.argsort(-self.lengths, kind="stable").tolist()

    def speed(self, plan: Plan) -> float:
        """Rows a second of three micro-batches of usual lengths. Raises torch.OutOfMemoryError, FinetuneError.

        The longest rows come first, for whether they fit. What is timed was done once before: what is new takes
        longer, and graphs are captured then.
        """
        seconds, count = 0.0, 0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            tried = self.prepare(plan)
            try:
                tried.learn(*self._batch(tried, self.longest_first[: plan.size]))
                for numbers in self._usual(tried.batches):
                    batch, images = self._batch(tried, numbers)
                    tried.learn(batch, images)
                    began = self._now()
                    tried.learn(batch, images)
                    seconds, count = seconds + self._now() - began, count + len(numbers)
            finally:
                tried.feed.close()
                self.forget()
        return count / max(seconds, 1e-9)

    def _batch(self, tried: Tried, numbers: Sequence[int]) -> tuple[Any, Any]:
        return tried.feed.batch([self.rows[number] for number in numbers])

    def _usual(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """Three of an epoch's micro-batches: of all, a quarter, a half and three quarters are shorter."""
        some = sorted(batches[:: -(-len(batches) // LOOKED_AT)], key=lambda numbers: self.lengths[numbers].max())
        return [some[len(some) * quarters // 4] for quarters in (1, 2, 3)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
