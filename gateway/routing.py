"""Which replica gets a request: a pure object that is told the time and the outcomes, and does nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Target:
    """A replica as the router sees it. `up` is what its health check says."""

    name: str
    slots: int
    up: bool = True
    outstanding: int = 0  # answers it is working on

    @property
    def load(self) -> float:
        return self.outstanding / self.slots


class Router:
    """Sends each request to the replica with the least outstanding answers for its slots."""

    def __init__(self, targets: Sequence[Target], clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = list(targets)
        self._clock = clock

    @property
    def slots(self) -> int:
        """Answers that the healthy replicas take at once."""
        return sum(target.slots for target in self.targets if target.up)

    def enter(self, weight: int = 1, tried: Collection[Target] = ()) -> Target | None:
        """The replica for a request of `weight` answers, which counts as outstanding from now on; None if none is up.

        `tried`: those that have failed this request already.
        """
        able = [target for target in self.targets if target.up and target not in tried]
        if not able:
            return None
        chosen = min(able, key=lambda target: target.load)
        chosen.outstanding += weight
        return chosen

    def leave(self, target: Target, weight: int = 1) -> None:
        target.outstanding -= weight
