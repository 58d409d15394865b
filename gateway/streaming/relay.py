"""Passes an engine's stream of events on to the client, event by event, and accounts for it."""

from __future__ import annotations

import re
from typing import Any

from gateway.errors import ApiError, engine_error
from gateway.streaming.completion import status_inside
from gateway.streaming.logprobs import RawLogProbs
from gateway.streaming.normalise import Normaliser
from gateway.streaming.sse import DONE, DONE_DATA, EventBuffer, data_of, event, parse_data, split_events
from gateway.streaming.stops import Stops

Object = dict[str, Any]
# The beginning of a chunk as nearly all engines write it, up to its first choice's index.
# A character of it can be matched in one way only: otherwise a chunk that is written in another order takes for ever.
CHUNK_HEAD = re.compile(rb'data: ?\{(?:[^{}\[\]"]|"(?:[^"\\]|\\.)*")*?"choices": ?\[\{"index": ?')
HEAD_KEYS = (b'"id"', b'"object"', b'"created"', b'"model"')
# Its end, from the end of its delta on, where every key that matters is null.
CHUNK_TAIL = re.compile(rb'\}(?:, ?"\w+": ?null)*\}\](?:, ?"\w+": ?(?:null|true|false|[0-9.]+|"[^"\\]*"))*\}\n\n\Z')
SMALL = 2048  # bytes of events that are looked into one by one
# Keys of chunks that are to be looked into.
TELLING = (b'"finish_reason"', b'"usage"', b'"error"', b'"tool_calls"')


class Frame:
    """How chunks of a stream that need no repair begin and end, so that others like them are known by their bytes.

    Quotes inside an answer's text are escaped in JSON, and so are line ends: the keys and ends found here are real.
    """

    def __init__(self, head: bytes, tail: bytes) -> None:
        self._head = head
        self._tail = tail
        self._joint = tail + head
        self._keys = [(key, (head + tail).count(key)) for key in TELLING]

    @classmethod
    def of(cls, chunk: bytes) -> Frame | None:
        """That of a chunk which needed no repair; None if it is written in an unusual way."""
        head, tail = CHUNK_HEAD.match(chunk), CHUNK_TAIL.search(chunk)
        if head is None or tail is None or not all(key in head[0] for key in HEAD_KEYS):
            return None
        return cls(head[0], tail[0])

    def count(self, events: bytes) -> int:
        """How many chunks these are; 0 if one of them is not like the first."""
        count = events.count(self._joint) + 1
        if events.count(b"\n") != 2 * count or b"\r" in events:
            return 0
        if not events.startswith(self._head) or not events.endswith(self._tail):
            return 0
        for key, times in self._keys:
            if events.count(key) != count * times:
                return 0
        return count


class Relay:
    """Passes whole events through untouched where it can, and looks into those that matter.

    The gateway asks every engine for a usage event, to count tokens. `include_usage` says whether the client asked for
    it too; otherwise it is taken out again. It comes once, at the end, unless `usage_everywhere`.

    `begun` is set by the first event with data, `content_begun` by the first
    with a part of the answer, `done` by the end of the stream, `error` by an error event of the engine; neither the
    error nor anything after either is passed on. With `stops`, every event is cut at the stop strings; once all answers
    have met one, the stream is done, unless the usage at its end is still wanted. `log_probs` rewrites the
    log-probabilities of engines that have a form of their own. `normaliser` repairs chunks, and completes a stream that
    ends without `[DONE]` or usage although all its answers have ended. `events` counts what was passed on.
    """

    def __init__(
        self,
        include_usage: bool,
        stops: Stops | None = None,
        log_probs: RawLogProbs | None = None,
        normaliser: Normaliser | None = None,
        usage_everywhere: bool = False,
    ) -> None:
        self.begun = False
        self.content_begun = False
        self.done = False
        self.error: ApiError | None = None
        self.usage: Object = {}
        self.events = 0
        self._include_usage = include_usage
        self._usage_everywhere = usage_everywhere
        self._usage_event = b""  # the engine's own
        self._stops = stops
        self._log_probs = log_probs
        self._normaliser = normaliser
        self._parse_all = stops is not None or log_probs is not None
        self._frame: Frame | None = None
        self._buffer = EventBuffer()

    def feed(self, data: bytes) -> bytes:
        """What to send on for these bytes from the engine; b"" is the end of its answer. Raises EventTooLong."""
        passed = self._relay(self._buffer.feed(data))
        if data or self.done or self.error is not None:
            return passed
        passed += self._inspect(self._buffer.end())
        return passed if self.done or self.error is not None else passed + self._complete()

    def _relay(self, events: bytes) -> bytes:
        """Pass on what is like the chunks before, in runs as long as possible, and look into the rest."""
        if self._frame is not None and (count := self._frame.count(events)):
            assert self._normaliser is not None
            self._normaliser.passed(count)
            self.events += count
            return events
        cut = events.find(b"\n\n", len(events) // 2) + 2
        if self._parse_all or len(events) <= SMALL or not 2 <= cut < len(events):
            return self._inspect(events)
        passed = self._relay(events[:cut])
        return passed if self.done or self.error is not None else passed + self._relay(events[cut:])

    def _inspect(self, events: bytes) -> bytes:
        passed: list[bytes] = []
        for single in split_events(events):
            data = data_of(single)
            if data is None:
                continue  # a comment: the gateway sends its own
            self.begun = True
            if data.strip() == DONE_DATA:
                passed.append(self._complete(single))
                break
            passed.append(self._pass_on(single, data))
            if self.error is not None:
                break
            if self._stops is not None and self._stops.all_hit and not self._include_usage:
                self.done = True
                if self._normaliser is not None:
                    self.usage = self.usage or self._normaliser.estimated_usage()
                passed.append(DONE)
                break
        found = b"".join(passed)
        self.events += found.count(b"\n\n")
        return found

    def _pass_on(self, single: bytes, data: bytes) -> bytes:
        """The event with this data as the client should see it; empty if nothing in it is for the client."""
        payload = parse_data(data)
        self.error = engine_error(payload)
        if self.error is not None:
            self.error = engine_error(payload, status_inside(payload))
            return b""
        if not isinstance(payload, dict):
            return b"" if self._normaliser is not None else single
        changed = not single.startswith(b"data:")  # it has other fields before its data
        if self._stops is not None and self._stops.all_hit:
            # Of what comes after a stop string only the usage counts; an answer that was ended has the reason `abort`.
            payload["choices"], changed = [], True
            if not isinstance(payload.get("usage"), dict):
                return b""
        if self._normaliser is not None:
            try:
                self.content_begun |= self._normaliser.chunk(payload)
            except ApiError as error:
                self.error = error
                return b""
            changed |= self._normaliser.repaired
            if not changed and self._frame is None and not self._parse_all:
                self._remember(single)
        else:
            self.content_begun = True
        if isinstance(payload.get("usage"), dict):
            self.usage = payload["usage"]
            alone = not payload.get("choices")
            if alone and (self._normaliser is not None or not self._include_usage):
                # At the end, when all answers have their finish reason: clients take the usage of the last chunk.
                self._usage_event = event(payload) if changed else single
                return b""
            if not self._include_usage or (self._normaliser is not None and not self._usage_everywhere):
                del payload["usage"]
                changed = True
        if self._log_probs is not None:
            self._log_probs.apply(payload)
            changed = True
        if self._stops is not None:
            return event(payload) if self._stops.cut_chunk(payload) else b""
        return event(payload) if changed else single

    def _remember(self, single: bytes) -> None:
        """Pass on what is like this chunk, which needed no repair, without parsing it."""
        if self._normaliser is not None and self._normaliser.all_begun and self.content_begun:
            self._frame = Frame.of(single)

    def _complete(self, end: bytes = b"") -> bytes:
        """The end of a stream, with what the engine left out. `end`: the engine's own, empty if it gave none.

        Without one the stream is complete only if all its answers have ended.
        """
        normaliser = self._normaliser
        cut = self._stops is not None and self._stops.all_hit
        if not end and (normaliser is None or not (normaliser.finished or cut)):
            return b""
        self.done = True
        passed: list[bytes] = []
        if normaliser is not None:
            finish = normaliser.missing_finish()
            if finish is not None and (self._stops is None or self._stops.cut_chunk(finish)):
                passed.append(event(finish))
            self.usage = self.usage or normaliser.estimated_usage()
            if self._include_usage:
                passed.append(self._usage_event or event(normaliser.usage_chunk(self.usage)))
        passed.append(end if end.startswith(b"data:") else DONE)
        return b"".join(passed)
