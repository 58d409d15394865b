"""Which replica gets a request: a pure object that is told the time and the outcomes, and does nothing by itself.

A replica that fails several requests in a row rests (its circuit is open); after the rest a single request tries it
(half-open), and it rests twice as long if that fails too. A replica that could not be reached gets nothing while it
rests. One that fails is avoided only while there is a better one: what makes it fail may be the requests of a single
client, which must not shut out the others.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

FAILURES = 3  # in a row, after which a replica rests
FIRST_REST = 1.0  # seconds
LONGEST_REST = 30.0
# How much fuller than the emptiest replica the one may be that probably has a request's prefix in its cache.
IMBALANCE = 0.25


class Outcome(enum.Enum):
    ANSWERED = "answered"  # also with a client's error
    FAILED = "failed"  # it said that it failed, broke off, or said something that makes no sense
    UNREACHABLE = "unreachable"  # it refused the connection or was silent
    NONE = "none"  # the client went, or the time was up: it says nothing about the replica


@dataclass(eq=False)
class Target:
    """A replica as the router sees it. `up` is what its health check says."""

    name: str
    slots: int
    up: bool = True
    outstanding: int = 0  # answers it is working on
    chosen: int = 0  # when it was last chosen, in requests
    failures: int = 0  # in a row
    rest: float = FIRST_REST  # how long the next rest is
    rests_until: float | None = None
    unreachable: bool = False  # why it rests
    trying: bool = False  # a request tries whether its rest is over

    @property
    def load(self) -> float:
        return self.outstanding / self.slots


@dataclass(eq=False)
class Attempt:
    """A request of `weight` answers at a replica."""

    target: Target
    weight: int
    trial: bool = False


class Router:
    """Sends each request to the replica with the least outstanding answers for its slots.

    A request with an `affinity` goes where earlier ones with the same went, as long as that replica has a free slot and
    is hardly fuller than the others.
    """

    def __init__(self, targets: Sequence[Target], clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = list(targets)
        self._clock = clock
        self._count = 0

    @property
    def slots(self) -> int:
        """Answers that the replicas in working order take at once."""
        return sum(target.slots for target in self.targets if target.up and target.rests_until is None)

    def rest(self, target: Target) -> float:
        """Seconds until a replica's rest is over; 0 if it doesn't rest."""
        return 0.0 if target.rests_until is None else max(0.0, target.rests_until - self._clock())

    def shut(self, target: Target) -> bool:
        """Whether it gets no request at all for now."""
        return not target.up or (target.unreachable and self.rest(target) > 0)

    @property
    def retry_after(self) -> float:
        """Seconds until the first rest of a replica that is up is over."""
        return min((self.rest(target) for target in self.targets if target.up), default=0.0)

    def enter(self, weight: int = 1, affinity: bytes | None = None, tried: Collection[Target] = ()) -> Attempt | None:
        """The replica for a request, which counts as outstanding from now on; None if there is none.

        `tried`: those that have failed this request already.
        """
        able = [target for target in self.targets if target.up and target not in tried]
        working = [target for target in able if target.rests_until is None]
        now = self._clock()
        for target in able:
            if target.rests_until is not None and now >= target.rests_until and not target.trying:
                target.trying = True
                return self._attempt(target, weight, trial=True)
        working = working or [target for target in able if not target.unreachable]
        if not working:
            return None
        return self._attempt(self._choose(working, affinity), weight)

    def _choose(self, working: list[Target], affinity: bytes | None) -> Target:
        emptiest = min(working, key=lambda target: (target.load, target.chosen))
        if affinity is not None and len(working) > 1:
            liked = max(working, key=lambda target: _rank(affinity, target))
            if liked.load < 1 and liked.load - emptiest.load <= IMBALANCE:
                return liked
        return emptiest

    def _attempt(self, target: Target, weight: int, trial: bool = False) -> Attempt:
        self._count += 1
        target.chosen = self._count
        target.outstanding += weight
        return Attempt(target, weight, trial)

    def begun(self, attempt: Attempt) -> None:
        """An answer has begun, which ends a trial: others may come. A failure before its end means another rest."""
        if attempt.trial:
            attempt.trial = False
            self.restore(attempt.target)
            attempt.target.failures = FAILURES - 1

    def leave(self, attempt: Attempt, outcome: Outcome) -> None:
        target = attempt.target
        target.outstanding -= attempt.weight
        if attempt.trial:
            target.trying = False
        if outcome is Outcome.ANSWERED:
            self.restore(target)
            target.rest = FIRST_REST
        elif outcome in (Outcome.FAILED, Outcome.UNREACHABLE):
            target.failures += 1
            # What was on its way when the rest began says nothing new.
            if attempt.trial or (target.failures >= FAILURES and target.rests_until is None):
                target.rests_until = self._clock() + target.rest
                target.rest = min(target.rest * 2, LONGEST_REST)
                target.unreachable = outcome is Outcome.UNREACHABLE

    def restore(self, target: Target) -> None:
        """The replica is in working order again: it answered, or was started anew."""
        target.failures, target.rests_until, target.trying, target.unreachable = 0, None, False, False


def _rank(affinity: bytes, target: Target) -> bytes:
    """Rendezvous hashing: when a replica comes or goes, only the requests that it gets or had move."""
    return hashlib.blake2b(affinity + target.name.encode(), digest_size=8).digest()
