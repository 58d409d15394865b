"""Stop strings, for engines that drop them: the text is cut exactly before the first one, however it comes.

The list of the tokens' log-probabilities is cut with the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

Object = dict[str, Any]


class StopCutter:
    """Takes an answer's text as it comes and gives back what surely comes before any stop string.

    Text that could be the beginning of a stop string stays pending, so that no part of one is ever sent. `hit` is set
    once one is complete; nothing is given back after that.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._pending = ""
        self.hit = False

    def feed(self, text: str) -> str:
        if self.hit:
            return ""
        text = self._pending + text
        # The one that is complete first counts, so that it makes no difference in which pieces the text came.
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.hit, self._pending = True, ""
            return text[: min(found)[1]]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """The pending text, at the end of an answer that did not complete a stop string."""
        pending, self._pending = self._pending, ""
        return pending

    @property
    def pending(self) -> int:
        """How many characters could be the beginning of a stop string and have not been given back."""
        return len(self._pending)

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """The length of the longest end of `text` that `stop` begins with."""
        for size in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:size]):
                return size
        return 0


class _Choice:
    """One answer of a request: its cutter, and the log-probabilities whose text was not given back yet."""

    def __init__(self, stops: list[str]) -> None:
        self.cutter = StopCutter(stops)
        self._given = 0  # bytes of text given back
        self._seen = 0  # bytes of the tokens seen
        self._entries: deque[tuple[int, int, Object]] = deque()  # begin and end in bytes, and the entry

    def feed(self, text: str) -> str:
        given = self.cutter.feed(text)
        self._given += len(given.encode("utf-8", "replace"))
        return given

    def end(self) -> str:
        given = self.cutter.end()
        self._given += len(given.encode("utf-8", "replace"))
        return given

    def tokens(self, entries: list[Object], ended: bool) -> list[Object]:
        """The log-probabilities of the tokens whose text is given back, these new ones and earlier ones."""
        for entry in entries:
            data = entry.get("bytes")
            size = len(data) if isinstance(data, list) else len(str(entry.get("token", "")).encode("utf-8", "replace"))
            self._entries.append((self._seen, self._seen + size, entry))
            self._seen += size
        ready = []
        while self._entries:
            begin, end, entry = self._entries[0]
            # A token that the cut goes through counts: a part of its text is in the answer.
            if end > self._given and not (ended and (begin < self._given or not self.cutter.hit)):
                break
            ready.append(entry)
            self._entries.popleft()
        return ready


class Stops:
    """The stop strings of one request, for all its answers."""

    def __init__(self, stops: list[str], n: int) -> None:
        self._choices = [_Choice(stops) for _ in range(n)]

    @property
    def all_hit(self) -> bool:
        return all(choice.cutter.hit for choice in self._choices)

    def cut_chunk(self, payload: Object) -> bool:
        """Cut a stream's chunk in place; False if nothing of it is left to be sent."""
        choices = payload.get("choices")
        if not isinstance(choices, list) or not choices:
            return True
        payload["choices"] = [choice for choice in choices if self._cut_choice(choice)]
        return bool(payload["choices"])

    def _cut_choice(self, choice: Object) -> bool:
        state = self._choices[choice.get("index", 0) % len(self._choices)]
        if state.cutter.hit:
            return False
        fields, name = _text_field(choice)
        content = fields.get(name)
        text = state.feed(content if isinstance(content, str) else "")
        if state.cutter.hit:
            choice["finish_reason"] = "stop"
        elif choice.get("finish_reason") is not None:
            text += state.end()
        tokens = self._cut_tokens(choice, state, ended=choice.get("finish_reason") is not None)
        if content and not text and not tokens and choice.get("finish_reason") is None and "role" not in fields:
            return False
        if content or text:
            fields[name] = text
        return True

    @staticmethod
    def _cut_tokens(choice: Object, state: _Choice, ended: bool) -> bool:
        """Cut a chat's list of log-probabilities as its text is cut; whether any are left."""
        log_probs = choice.get("logprobs")
        entries = log_probs.get("content") if isinstance(log_probs, dict) else None
        tokens = state.tokens(entries or [], ended)
        if tokens or entries is not None:
            choice["logprobs"] = {**(log_probs or {}), "content": tokens}
        return bool(tokens)

    def cut_answer(self, payload: Object) -> None:
        """Cut a whole answer in place."""
        for choice, state in zip(payload["choices"], self._choices, strict=False):
            fields, name = _text_field(choice)
            content = fields.get(name)
            if isinstance(content, str):
                fields[name] = state.feed(content) + state.end()
                if state.cutter.hit:
                    choice["finish_reason"] = "stop"
                self._cut_tokens(choice, state, ended=True)


def _text_field(choice: Object) -> tuple[Object, str]:
    """Where a choice has its text: a chat's in its delta or message, a text completion's in the choice itself."""
    if "text" in choice:
        return choice, "text"
    fields = choice.get("delta") or choice.get("message")
    if fields is None:
        fields = choice["delta"] = {}
    return fields, "content"
