"""Which of several plans trains the most rows a second, tried for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of
from finetune.families.base import Feed
from finetune.memory.plan import Plan, set_checkpointing
from modelfiles import counted

SECONDS = 20.0
TRIED = 4  # plans, the ones of most rows
WORSE = 0.95  # of the best so far: the plans of fewer rows will not be better


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
            torch.cuda.empty_cache()
            measured.append(f"{counted(plan.size, 'row at once does', 'rows at once do')} not fit")
            continue
        measured.append(f"{plan.size}: {found:.1f} rows/s")
        if found > fastest / WORSE:
            best, fastest = plan, found
        elif found < fastest * WORSE:
            break
        if time.monotonic() > deadline:
            break
    trial.feed.close()
    return best, f"tried: {', '.join(measured)}"


class Trial:
    """Trains rows of a dataset without changing anything.

    base: the *ForConditionalGeneration module; learn: a forward and backward pass of what `feed` makes of rows;
    forget: drops the gradients.
    """

    def __init__(
        self, base: Any, rows: Sequence[Encoded], feed: Feed, device: torch.device,
        learn: Callable[[Any, Any], None], forget: Callable[[], None],
    ) -> None:  # fmt: skip
        self.base, self.rows, self.feed, self.device, self.learn, self.forget = base, rows, feed, device, learn, forget
        self.longest_first = np.argsort(-lengths_of(rows).astype(np.int64), kind="stable")

    def speed(self, plan: Plan) -> float:
        """Rows a second of micro-batches of rows of like length. Raises torch.OutOfMemoryError, FinetuneError.

        The longest rows come first, for whether they fit; they are not timed, as what is new takes longer.
        """
        set_checkpointing(self.base, plan)
        seconds, count = 0.0, 0
        last = len(self.rows) - plan.size
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for start in (0, last // 4, last // 2, 3 * last // 4):
                batch, images = self.feed.batch([self.rows[n] for n in self.longest_first[start : start + plan.size]])
                began = self._now()
                try:
                    self.learn(batch, images)
                finally:
                    self.forget()
                if start or not last:
                    seconds, count = seconds + self._now() - began, count + plan.size
        return count / max(seconds, 1e-9)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()
