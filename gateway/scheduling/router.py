"""Which replica gets a request. A pure object: the caller passes in the clock and the outcomes; it does no I/O.

Each replica has a circuit breaker. After FAILURES failed requests in a row it is open: the replica cools down. After
the cooldown it is half open: one request is sent to it, and a failure of that one starts a cooldown twice as long. A
replica that could not be reached gets no request during its cooldown. A replica that answers with failures is only
avoided while there is a better one: the requests of a single client may be what makes it fail, and that client must
not take the replica away from the others.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

FAILURES = 3  # in a row, after which a replica cools down
FIRST_COOLDOWN = 1.0  # seconds
MAX_COOLDOWN = 30.0
# Largest difference in load (see `Target.load`) to the emptiest replica at which a request still goes to the replica
# that probably has its prefix in its cache.
IMBALANCE = 0.25


class Outcome(enum.Enum):
    ANSWERED = "answered"  # also with a client's error
    FAILED = "failed"  # it answered with a server error, broke off, or sent something that cannot be parsed
    UNREACHABLE = "unreachable"  # it refused the connection or sent nothing in time
    NONE = "none"  # the client disconnected, or its deadline passed: this says nothing about the replica


@dataclass(eq=False)
class Target:
    """A replica as the router sees it. `up` is what its health check says."""

    name: str
    slots: int
    up: bool = True
    outstanding: int = 0  # answers it is working on
    chosen: int = 0  # number of the last request that it was chosen for
    failures: int = 0  # in a row
    next_cooldown: float = FIRST_COOLDOWN  # seconds
    cooldown_until: float | None = None  # None: its circuit is closed
    unreachable: bool = False  # why it cools down
    half_open: bool = False  # its cooldown has passed and one request is testing it

    @property
    def load(self) -> float:
        return self.outstanding / self.slots


@dataclass(eq=False)
class Assignment:
    """A request of `weight` answers at a replica. `half_open`: it tests a replica whose cooldown has passed."""

    target: Target
    weight: int
    half_open: bool = False


class Router:
    """Sends each request to the replica with the fewest outstanding answers per slot.

    A request with an `affinity` goes where earlier ones with the same went, as long as that replica has a free slot and
    its load is within IMBALANCE of the emptiest one's.
    """

    def __init__(self, targets: Sequence[Target], clock: Callable[[], float] = time.monotonic) -> None:
        self.targets = list(targets)
        self._clock = clock
        self._count = 0

    @property
    def slots(self) -> int:
        """Answers that the replicas in working order take at once."""
        return sum(target.slots for target in self.targets if target.up and target.cooldown_until is None)

    def cooldown(self, target: Target) -> float:
        """Seconds until a replica's cooldown is over; 0 if it has none."""
        return 0.0 if target.cooldown_until is None else max(0.0, target.cooldown_until - self._clock())

    def is_closed_to_all(self, target: Target) -> bool:
        """Whether it gets no request at all for now."""
        return not target.up or (target.unreachable and self.cooldown(target) > 0)

    @property
    def retry_after(self) -> float:
        """Seconds until the first cooldown of a replica that is up is over."""
        return min((self.cooldown(target) for target in self.targets if target.up), default=0.0)

    def enter(
        self, weight: int = 1, affinity: bytes | None = None, tried: Collection[Target] = ()
    ) -> Assignment | None:
        """The replica for a request, which counts as outstanding from now on; None if there is none.

        `tried`: those that have failed this request already.
        """
        candidates = [target for target in self.targets if target.up and target not in tried]
        working = [target for target in candidates if target.cooldown_until is None]
        now = self._clock()
        for target in candidates:
            if target.cooldown_until is not None and now >= target.cooldown_until and not target.half_open:
                target.half_open = True
                return self._assign(target, weight, half_open=True)
        working = working or [target for target in candidates if not target.unreachable]
        if not working:
            return None
        return self._assign(self._choose(working, affinity), weight)

    def _choose(self, working: list[Target], affinity: bytes | None) -> Target:
        emptiest = min(working, key=lambda target: (target.load, target.chosen))
        if affinity is not None:
            preferred = max(working, key=lambda target: _rank(affinity, target))
            if preferred.load < 1 and preferred.load - emptiest.load <= IMBALANCE:
                return preferred
        return emptiest

    def _assign(self, target: Target, weight: int, half_open: bool = False) -> Assignment:
        self._count += 1
        target.chosen = self._count
        target.outstanding += weight
        return Assignment(target, weight, half_open)

    def begun(self, assignment: Assignment) -> None:
        """An answer has begun. Of a half-open replica this closes the circuit: it gets other requests again.

        A failure before that answer's end starts another cooldown.
        """
        if assignment.half_open:
            assignment.half_open = False
            self.restore(assignment.target)
            assignment.target.failures = FAILURES - 1

    def release(self, assignment: Assignment, outcome: Outcome) -> None:
        """The request is over at this replica."""
        target = assignment.target
        target.outstanding -= assignment.weight
        if assignment.half_open:
            target.half_open = False
        if outcome is Outcome.ANSWERED:
            self.restore(target)
            target.next_cooldown = FIRST_COOLDOWN
        elif outcome in (Outcome.FAILED, Outcome.UNREACHABLE):
            target.failures += 1
            # The failure of a request that was sent before the cooldown began must not start it again.
            if assignment.half_open or (target.failures >= FAILURES and target.cooldown_until is None):
                target.cooldown_until = self._clock() + target.next_cooldown
                target.next_cooldown = min(target.next_cooldown * 2, MAX_COOLDOWN)
                target.unreachable = outcome is Outcome.UNREACHABLE

    def restore(self, target: Target) -> None:
        """The replica is in working order again: it answered, or was started anew."""
        target.failures, target.cooldown_until, target.half_open, target.unreachable = 0, None, False, False


def _rank(affinity: bytes, target: Target) -> bytes:
    """Rendezvous hashing: when a replica comes or goes, only the requests that it gets or had move."""
    return hashlib.blake2b(affinity + target.name.encode(), digest_size=8).digest()
