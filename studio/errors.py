"""The error that a page shows."""

from __future__ import annotations


class StudioError(Exception):
    """What was wrong and what to do next, as the page says it.

    message: a key of the locale files ("runs.missing"), whose placeholders are `values`, or a sentence as it is (such
    as a FinetuneError's). status: the HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 400, **values: object) -> None:
        super().__init__(message)
        self.message, self.status, self.values = message, status, values
