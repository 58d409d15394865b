"""A stream of chat completion chunks on its way from the engine to the client. Pure: bytes in, bytes out."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import ApiError, engine_error
from gateway.sse import EventBuffer, event, event_data, split_events


class Relay:
    """Passes whole events through untouched and looks into the few that matter to us.

    The gateway asks every engine for a usage event, to count tokens. `include_usage` says whether the client asked for
    it too; otherwise it is taken out again. `done` is set by `data: [DONE]`, `error` by an error event of the engine;
    neither the error nor anything after either is passed on.
    """

    def __init__(self, include_usage: bool) -> None:
        self.done = False
        self.error: ApiError | None = None
        self.usage: dict[str, Any] = {}
        self._include_usage = include_usage
        self._buffer = EventBuffer()

    def feed(self, data: bytes) -> bytes:
        """What to send on for these bytes from the engine. Raises EventTooLong."""
        events = self._buffer.feed(data)
        # Quotes inside an answer's text are escaped in JSON, so these can only be keys, or the end mark.
        if b'"usage"' in events or b'"error"' in events or b"[DONE]" in events:
            return self._look(events)
        return events

    def _look(self, events: bytes) -> bytes:
        passed: list[bytes] = []
        for single in split_events(events):
            if single.startswith(b"data:") and single[5:].strip() == b"[DONE]":
                self.done = True
                passed.append(single)
                break
            if b'"usage"' in single or b'"error"' in single:
                payload = event_data(single)
                self.error = engine_error(payload)
                if self.error is not None:
                    break
                if isinstance(payload, dict) and isinstance(payload.get("usage"), dict):
                    self.usage = payload["usage"]
                    if not self._include_usage:
                        single = _without_usage(payload)
            passed.append(single)
        return b"".join(passed)


def _without_usage(payload: dict[str, Any]) -> bytes:
    """The event without its usage; nothing at all if it had nothing else to say."""
    if not payload.get("choices"):
        return b""
    del payload["usage"]
    return event(payload)


def usage_of(answer: bytes) -> dict[str, Any]:
    """The usage of a whole answer. Raises ApiError 502 for anything but a chat completion."""
    try:
        payload = orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise ApiError(502, "The engine's answer is not valid JSON.", code="engine_error") from None
    failure = engine_error(payload, _status_inside(payload))
    if failure is not None:
        raise failure
    if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
        raise ApiError(502, "The engine's answer is not a completion.", code="engine_error")
    usage = payload.get("usage")
    return usage if isinstance(usage, dict) else {}


def _status_inside(payload: Any) -> int:
    """The status that an error answered with HTTP 200 carries in its `code`, as LMDeploy's do; 502 if it has none."""
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502
