"""Passes an engine's stream of events on to the client, event by event, and accounts for it."""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError, engine_error
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.sse import DONE, EventBuffer, event, event_data, split_events
from gateway.streaming.stops import Stops


class Relay:
    """Passes whole events through untouched and looks into the few that matter to us.

    The gateway asks every engine for a usage event, to count tokens. `include_usage` says whether the client asked for
    it too; otherwise it is taken out again. `begun` is set by the first whole event, `done` by `data: [DONE]`, `error`
    by an error event of the engine; neither the error nor anything after either is passed on. With `stops`, every event
    is cut at the stop strings; once all answers have met one, the stream is done, unless the usage at its end is still
    wanted. `log_probs` rewrites the log-probabilities of engines that have a form of their own.
    """

    def __init__(self, include_usage: bool, stops: Stops | None = None, log_probs: RawLogProbs | None = None) -> None:
        self.begun = False
        self.done = False
        self.error: ApiError | None = None
        self.usage: dict[str, Any] = {}
        self._include_usage = include_usage
        self._stops = stops
        self._log_probs = log_probs
        self._every = stops is not None or log_probs is not None
        self._buffer = EventBuffer()

    def feed(self, data: bytes) -> bytes:
        """What to send on for these bytes from the engine. Raises EventTooLong."""
        events = self._buffer.feed(data)
        self.begun = self.begun or bool(events)
        # Quotes inside an answer's text are escaped in JSON, so these can only be keys, or the end mark.
        if self._every or b'"usage"' in events or b'"error"' in events or b"[DONE]" in events:
            return self._inspect(events)
        return events

    def _inspect(self, events: bytes) -> bytes:
        passed: list[bytes] = []
        for single in split_events(events):
            if single.startswith(b"data:") and single[5:].strip() == b"[DONE]":
                self.done = True
                passed.append(single)
                break
            if self._every or b'"usage"' in single or b'"error"' in single:
                payload = event_data(single)
                self.error = engine_error(payload)
                if self.error is not None:
                    break
                if isinstance(payload, dict):
                    single = self._rewrite(single, payload)
            passed.append(single)
            if self._stops is not None and self._stops.all_hit and not self._include_usage:
                self.done = True
                passed.append(DONE)
                break
        return b"".join(passed)

    def _rewrite(self, single: bytes, payload: dict[str, Any]) -> bytes:
        """The event as the client should see it; empty if there is nothing in it for the client."""
        if isinstance(payload.get("usage"), dict):
            self.usage = payload["usage"]
            if not self._include_usage:
                if not payload.get("choices"):
                    return b""
                del payload["usage"]
                single = event(payload)
        if self._log_probs is not None:
            self._log_probs.apply(payload)
            single = event(payload)
        if self._stops is not None:
            return event(payload) if self._stops.cut_chunk(payload) else b""
        return single
