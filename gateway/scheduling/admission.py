"""Who may run, who waits and who is refused. A pure object: the caller passes in the clock; it does no I/O.

An engine runs a certain number of answers at once (its slots). With more it is slower for everybody, or queues without
bound and keeps every image in memory. So requests wait here, in a bounded queue. When it is full, the next request is
refused with the time after which to try again, computed from how long answers have taken.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

# Weight of the newest answer in the mean of service times.
NEWEST = 0.1
# Retry-After while no answer has been measured yet, in seconds.
UNKNOWN_RETRY = 5.0


@dataclass(eq=False)
class Ticket:
    """One request's place. `weight` is how many slots it takes: one for each answer it asks for."""

    tenant: str
    weight: int
    arrived: float
    started: float | None = None  # None: it waits


class Refused(Exception):
    """There is no room. `retry_after` is in seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class Admission:
    """Slots, and a bounded queue that takes turns between tenants.

    Invariants: nobody starts when the weights of those who run would then exceed `slots`; nobody waits while the next
    in turn would fit. Who asks for more slots than there are gets all of them.
    """

    def __init__(self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.running = 0  # slots taken
        self.waiting = 0  # requests
        self._clock = clock
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()  # by tenant; the first one's turn is next
        self._service: float | None = None  # mean seconds from start to end

    def enter(self, tenant: str, weight: int = 1, timeout: float = math.inf) -> Ticket:
        """A ticket that runs at once (`started` is set) or waits.

        Raises Refused when the queue is full, or when the wait will probably be longer than `timeout` seconds.
        """
        ticket = Ticket(tenant, weight, self._clock())
        if not self.waiting and self._fits(ticket):
            self._start(ticket)
            return ticket
        if self.full:
            raise Refused("queue_full", self.retry_after())
        if self._service is not None and self._expected_wait(self._service) > timeout:
            raise Refused("queue_timeout", self.retry_after())
        self._queues.setdefault(tenant, deque()).append(ticket)
        self.waiting += 1
        return ticket

    @property
    def full(self) -> bool:
        return self.waiting >= self.max_waiting

    def release(self, ticket: Ticket, served: bool = True) -> list[Ticket]:
        """The request is over, or gave up waiting: the tickets that run now because of it.

        `served`: whether the answer was complete, so that its time counts in the mean.
        """
        if ticket.started is None:
            queue = self._queues[ticket.tenant]
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.tenant]
            self.waiting -= 1
        else:
            self.running -= ticket.weight
            if served:
                seconds = self._clock() - ticket.started
                mean = seconds if self._service is None else self._service
                self._service = mean + NEWEST * (seconds - mean)
        return self._next()

    def retry_after(self) -> float:
        """Seconds until those who wait now will probably have run, at least 1."""
        return UNKNOWN_RETRY if self._service is None else max(1.0, self._expected_wait(self._service))

    def _expected_wait(self, service: float) -> float:
        return (self.waiting + 1) * service / self.slots

    def resize(self, slots: int) -> list[Ticket]:
        """There are more or fewer slots now: the tickets that run because of it."""
        self.slots = slots
        return self._next()

    def _fits(self, ticket: Ticket) -> bool:
        return self.running + min(ticket.weight, self.slots) <= self.slots

    def _start(self, ticket: Ticket) -> None:
        ticket.started = self._clock()
        ticket.weight = min(ticket.weight, self.slots)
        self.running += ticket.weight

    def _next(self) -> list[Ticket]:
        started: list[Ticket] = []
        while self._queues:
            tenant, queue = next(iter(self._queues.items()))
            if not self._fits(queue[0]):
                break
            ticket = queue.popleft()
            self._queues.move_to_end(tenant)
            if not queue:
                del self._queues[tenant]
            self.waiting -= 1
            self._start(ticket)
            started.append(ticket)
        return started
