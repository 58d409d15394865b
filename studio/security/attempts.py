"""How often a login may fail."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from studio.errors import StudioError

FAILURES, SECONDS = 10, 60.0  # failed logins within so many seconds, of all clients together


class Attempts:
    """Counts failed logins of everybody: behind a proxy all clients have one address, and guessing has many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: deque[float] = deque()

    def check(self) -> None:
        """Raises StudioError (429) while there were too many failures."""
        now = self._clock()
        while self._failed and now - self._failed[0] > SECONDS:
            self._failed.popleft()
        if len(self._failed) >= FAILURES:
            raise StudioError("errors.too_many_logins", status=429, seconds=int(SECONDS - (now - self._failed[0])) + 1)

    def failed(self) -> None:
        self._failed.append(self._clock())
