"""Stop strings, for engines that drop them: the text is cut exactly before the first one, however it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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


class Stops:
    """The stop strings of one request, for all its answers."""

    def __init__(self, stops: list[str], n: int) -> None:
        self._cutters = [StopCutter(stops) for _ in range(n)]

    @property
    def all_hit(self) -> bool:
        return all(cutter.hit for cutter in self._cutters)

    def cut_chunk(self, payload: dict[str, Any]) -> bool:
        """Cut a stream's chunk in place; False if nothing of it is left to be sent."""
        choices = payload.get("choices")
        if not isinstance(choices, list) or not choices:
            return True
        payload["choices"] = [choice for choice in choices if self._cut_choice(choice)]
        return bool(payload["choices"])

    def _cut_choice(self, choice: dict[str, Any]) -> bool:
        cutter = self._cutters[choice.get("index", 0) % len(self._cutters)]
        if cutter.hit:
            return False
        fields, name = _text_field(choice)
        content = fields.get(name)
        text = cutter.feed(content if isinstance(content, str) else "")
        if cutter.hit:
            choice["finish_reason"] = "stop"
        elif choice.get("finish_reason") is not None:
            text += cutter.end()
        elif content and not text and "role" not in fields:
            return False
        if content or text:
            fields[name] = text
        return True

    def cut_answer(self, payload: dict[str, Any]) -> None:
        """Cut a whole answer in place."""
        for choice, cutter in zip(payload["choices"], self._cutters, strict=False):
            fields, name = _text_field(choice)
            content = fields.get(name)
            if isinstance(content, str):
                fields[name] = cutter.feed(content) + cutter.end()
                if cutter.hit:
                    choice["finish_reason"] = "stop"


def _text_field(choice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Where a choice has its text: a chat's in its delta or message, a text completion's in the choice itself."""
    if "text" in choice:
        return choice, "text"
    fields = choice.get("delta") or choice.get("message")
    if fields is None:
        fields = choice["delta"] = {}
    return fields, "content"
