"""Signals of child processes that tests send some."""

from __future__ import annotations

import signal


def heed_signals() -> None:
    """For `preexec_fn`: also where the tests themselves run in the background or under nohup, and so ignore some."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
