"""A conversation: what was said, the pictures that go with the next question, and answers as they come."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx

from gateway.verify.servers import RunningEngine

MAX_PICTURE = 20 << 20  # bytes
KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
# What a terminal obeys: a model's text must not move its cursor or set its title.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SILENCE = 600.0  # seconds without a byte


class ChatError(Exception):
    """One sentence for the terminal."""


class Conversation:
    """All turns so far with one model."""

    def __init__(self, engine: RunningEngine) -> None:
        self.engine = engine
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[str] = []  # data: URIs for the next question

    def add_picture(self, path: Path) -> int:
        """Put a picture before the next question; how many wait now. Raises ChatError."""
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise ChatError(f"{path} cannot be read: {error.strerror}.") from None
        kind = next((kind for start, kind in KINDS if data.startswith(start)), None)
        if kind is None:
            raise ChatError(f"{path} is no PNG, JPEG, WebP or GIF picture.")
        if len(data) > MAX_PICTURE:
            raise ChatError(f"{path} has {len(data) >> 20} MiB; a picture may have {MAX_PICTURE >> 20}.")
        self.pictures.append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
        return len(self.pictures)

    def clear(self) -> None:
        self.messages, self.pictures = [], []

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer's pieces, safe to print. However it ends, what came of it is part of the conversation.

        Raises ChatError; then the question is taken back.
        """
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in self.pictures]
        question = {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}
        answer = ""
        try:
            for piece in self._pieces([*self.messages, question]):
                answer += piece
                yield CONTROL.sub("", piece)
        finally:
            if answer:  # also of one that was broken off
                self.messages += [question, {"role": "assistant", "content": answer}]
                self.pictures = []

    def _pieces(self, messages: list[dict[str, Any]]) -> Iterator[str]:
        key = self.engine.key
        try:
            with httpx.stream(
                "POST",
                str(self.engine.url / "v1/chat/completions"),
                json={"model": self.engine.model, "messages": messages, "stream": True},
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(SILENCE, connect=10),
            ) as response:
                if response.status_code != 200:
                    raise ChatError(_message(response.read()))
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise ChatError(_message(data.encode()))
                    for choice in chunk.get("choices") or []:
                        yield choice.get("delta", {}).get("content") or ""
        except httpx.HTTPError as error:
            raise ChatError(f"The answer broke off: {error or type(error).__name__}.") from None
        except (ValueError, AttributeError):
            raise ChatError("The server's answer is no chat completion.") from None


def _message(body: bytes) -> str:
    try:
        return CONTROL.sub("", str(json.loads(body)["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return CONTROL.sub("", body[:300].decode("utf-8", "replace"))
