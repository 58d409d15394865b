"""From tokens to text: bytes of a token, characters held back until they are whole, and stop strings cut exactly."""

from __future__ import annotations

import codecs
from typing import Any

from gateway.streaming.stops import StopCutter
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


class Detokenizer:
    """Turns the growing bytes of an answer into text that can be shown.

    Held back are bytes of an incomplete character and text that a stop string may begin with. The answer ends before
    the stop string that is complete first (of two that end together, the longer), however the bytes are cut.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cutter = StopCutter(stops)
        self.shown = 0  # characters given out

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete; no text comes after it."""
        return self._cutter.hit

    @property
    def decoded(self) -> int:
        """Characters decoded, given out or held back."""
        return self.shown + self._cutter.pending

    def push(self, data: bytes) -> str:
        """The text that can be shown now that `data` has come."""
        return self._show(self._cutter.feed(self._decoder.decode(data)))

    def finish(self) -> str:
        """The rest, when no more bytes come: an incomplete character becomes U+FFFD."""
        return self._show(self._cutter.feed(self._decoder.decode(b"", final=True)) + self._cutter.end())

    def _show(self, text: str) -> str:
        self.shown += len(text)
        return text
