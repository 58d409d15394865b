"""The bytes that a byte-level BPE vocabulary's spelling of a token stands for."""

from __future__ import annotations

from functools import lru_cache


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
