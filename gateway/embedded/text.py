"""From tokens to text: bytes of a token, characters held back until they are whole, and stop strings cut exactly."""

from __future__ import annotations

import codecs
from typing import Any

from gateway.streaming.token_bytes import token_bytes


class TokenBytes:
    """The bytes that a token stands for, in byte-level BPE (Qwen, ...) and SentencePiece (Gemma, ...) tokenizers.

    Raises ValueError if the tokenizer's tokens cannot be read this way.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {i: str(token.content).encode() for i, token in tokenizer.added_tokens_decoder.items()}
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self._cache: dict[int, bytes] = {}
        sample = "Wörld 日本 🙂\n"
        if b"".join(map(self.raw, tokenizer.encode(sample, add_special_tokens=False))).decode().lstrip() != sample:
            raise ValueError("its tokenizer is neither byte-level BPE nor SentencePiece")

    def raw(self, token: int) -> bytes:
        """The token's bytes; a special token's are its name."""
        if token not in self._cache:
            self._cache[token] = self._added[token] if token in self._added else self._convert(token)
        return self._cache[token]

    def shown(self, token: int) -> bytes:
        """The token's bytes in an answer, where special tokens do not show."""
        return b"" if token in self._special else self.raw(token)

    def _convert(self, token: int) -> bytes:
        # Models may have more rows than the tokenizer has tokens.
        return token_bytes(str(self._tokenizer.convert_ids_to_tokens(token) or ""), self._byte_level)


class AnswerText:
    """An answer that grows by bytes; what may be shown comes out of `push` and `finish`.

    Held back are bytes of an incomplete character and text that a stop string may begin with. The answer ends before
    the stop string that is complete first (of two that end together, the longer), however the bytes are cut.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""
        self.shown = 0  # characters given out
        self.stopped = False

    @property
    def decoded(self) -> int:
        """Characters decoded, given out or held back."""
        return self.shown + len(self._held)

    def push(self, data: bytes) -> str:
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """The rest, when no more bytes come: an incomplete character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        self.shown += len(rest)
        return text + rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)[1]]
        else:
            text, self._held = self._split(text)
        self.shown += len(text)
        return text

    def _split(self, text: str) -> tuple[str, str]:
        """(what may be shown, the longest end that may be the beginning of a stop string)."""
        longest = max(map(len, self._stops), default=1) - 1
        for start in range(max(len(text) - longest, 0), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return text[:start], text[start:]
        return text, ""
