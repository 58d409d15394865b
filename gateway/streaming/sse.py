"""Server-sent events on their way through: cut at event boundaries, so that nobody is ever sent half an event.

The format is the WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html) as OpenAI uses it: `data:`
lines of JSON, a blank line after each, `data: [DONE]` at the end.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gateway.errors import ApiError

CONTENT_TYPE = b"text/event-stream; charset=utf-8"
STREAM_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise collect the events
]
COMMENT = b": still working\n\n"

EVENT_LIMIT = 8 * 1024 * 1024  # bytes of an event whose end has not come yet
DONE_DATA = b"[DONE]"
DONE = b"data: [DONE]\n\n"
END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")


class EventTooLong(Exception):
    """An engine sent more than EVENT_LIMIT bytes without ending an event."""


class EventBuffer:
    """Takes bytes as the network cut them and gives back whole events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events so far, as they came; empty if there is none. Raises EventTooLong."""
        if self._rest:
            data = self._rest + data
        elif data.endswith(b"\n\n"):  # as nearly always
            return data
        if b"\r" in data:
            end = max((match.end() for match in END.finditer(data)), default=0)
        else:
            end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        self._rest = data[end:]
        if len(self._rest) > EVENT_LIMIT:
            raise EventTooLong
        return data[:end]

    def end(self) -> bytes:
        """The last event of a stream that ended without the blank line after it; empty if nothing is left."""
        rest, self._rest = self._rest.strip(), b""
        return rest + b"\n\n" if rest else b""


def split_events(events: bytes) -> list[bytes]:
    """The single events of a run of whole events, each with its end."""
    found, start = [], 0
    for match in END.finditer(events):
        found.append(events[start : match.end()])
        start = match.end()
    return found


def data_of(event: bytes) -> bytes | None:
    """The `data` field of an event, its lines joined; None for an event without one, such as a comment.

    Other fields (`event`, `id`, `retry`) and comments say nothing to OpenAI's clients.
    """
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:  # as nearly always
        return event[5:-2].removeprefix(b" ")
    lines = []
    for line in event.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def event_data(event: bytes) -> Any:
    """The JSON of an event's data; None for comments, `[DONE]` and anything that isn't JSON."""
    return parse_data(data_of(event))


def parse_data(data: bytes | None) -> Any:
    """As `event_data`, of what `data_of` gave."""
    try:
        return orjson.loads(data) if data else None
    except orjson.JSONDecodeError:
        return None


def event(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """What ends a stream that failed after its first byte; OpenAI's clients raise on it. No `[DONE]` follows."""
    return event(error.envelope())
