"""How another API is served by the one request path: its requests become chat completions, their answers its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gateway.errors import ApiError
from gateway.streaming.sse import event_data, split_events

Object = dict[str, Any]


class Writer(Protocol):
    """Writes one answer in the words of the client's API.

    `content_type` is that of its streams; `comment` is what may be sent into a silent one, empty for nothing.
    """

    content_type: bytes
    comment: bytes

    def answer(self, completion: Object) -> bytes:
        """A whole answer, from a whole chat completion."""

    def chunk(self, chunk: Object) -> bytes:
        """What to send for one chunk of a stream; the last one has the usage and no choices."""

    def end(self) -> bytes:
        """What ends a stream that came to its end."""

    def error(self, error: ApiError) -> bytes:
        """What ends a stream that failed."""


@dataclass(frozen=True)
class Translation:
    """A request as a chat completion.

    `names` maps fields of the chat completion to those that the client knows, for errors. `ready` is an answer that
    needs no engine.
    """

    body: Object
    writer: Writer
    names: Mapping[str, str] = field(default_factory=dict)
    ready: bytes | None = None


def thought(message: Object) -> str:
    """What a reasoning model thought before its answer, by either name that engines have for it."""
    text = message.get("reasoning_content") or message.get("reasoning")
    return text if isinstance(text, str) else ""


def write_events(writer: Writer, events: bytes) -> bytes:
    """Whole events of a stream of chat completion chunks, written anew."""
    written: list[bytes] = []
    for single in split_events(events):
        if single.startswith(b"data:") and single[5:].strip() == b"[DONE]":
            written.append(writer.end())
        elif isinstance(chunk := event_data(single), dict):
            written.append(writer.chunk(chunk))
    return b"".join(written)


def write_answer(writer: Writer, answer: bytes) -> bytes:
    return writer.answer(orjson.loads(answer))


def rename(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The error with the field's name that the client used, in its `param` and its message."""
    param = error.param
    for name in sorted(names, key=len, reverse=True):
        if param is not None and (param == name or param.startswith((name + ".", name + "["))):
            error.param = names[name] + param[len(name) :]
            error.message = error.message.replace(param, error.param)
            break
    return error
