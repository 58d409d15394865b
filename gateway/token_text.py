"""What the vocabulary's spelling of a token stands for, and log-probabilities of an engine that gives that spelling."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

Object = dict[str, Any]


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's characters and their bytes (GPT-2's `bytes_to_unicode`): those not printable begin at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(token: str, byte_level: bool) -> bytes:
    """The bytes of a token as a vocabulary spells it: `Ġred` in byte-level BPE, `▁red` or `<0x0A>` in SentencePiece."""
    if byte_level:
        alphabet = byte_alphabet()
        if all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode("utf-8", "replace")  # an added token, which is spelled as it shows
    if len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


class RawLogProbs:
    """Puts LMDeploy 0.18's log-probabilities into OpenAI's form.

    There tokens are spelled as in the vocabulary, and the token that was drawn is missing among its own alternatives,
    of which `top` were asked for.
    """

    def __init__(self, top: int, byte_level: bool) -> None:
        self._top = top
        self._byte_level = byte_level

    def settle(self, payload: Object) -> None:
        """In place, for a whole completion or a chunk."""
        for choice in payload.get("choices") or []:
            for entry in (choice.get("logprobs") or {}).get("content") or []:
                drawn = self._named(entry)
                others = [self._named(other) for other in entry.get("top_logprobs") or []]
                best = sorted([drawn, *others], key=lambda found: -found["logprob"])[: self._top]
                entry.update(drawn, top_logprobs=best)

    def _named(self, entry: Object) -> Object:
        data = token_bytes(entry["token"], self._byte_level)
        return {"token": data.decode("utf-8", "replace"), "logprob": entry["logprob"], "bytes": list(data)}
