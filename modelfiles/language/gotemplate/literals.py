"""The values of Go's number, string and character literals."""

from __future__ import annotations

import math
import re

from modelfiles.language.gotemplate.errors import GoTemplateError

_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.)|$)", re.DOTALL)
_SEPARATED = re.compile(r"(?:0[xXoObB]_?)?[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*")


def number_value(text: str) -> int | float | complex:
    """The value of a number, octal if it begins with 0 as in Go. Raises GoTemplateError."""
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    try:
        if digits.endswith("i"):
            return complex(0, sign * float(digits[:-1]))
        is_hex = digits[:2].lower() == "0x"
        if ("." in digits or "e" in digits.lower()) and not is_hex:
            value_float = sign * float(digits)
            if math.isinf(value_float):
                raise ValueError(digits)
            return value_float
        if is_hex and "p" in digits.lower():
            return sign * float.fromhex(digits.replace("_", ""))
        if not _SEPARATED.fullmatch(digits):
            raise ValueError(digits)
        if re.fullmatch(r"0[0-9_]+", digits):
            digits = f"0o{digits[1:].lstrip('_')}"
        value = sign * int(digits, 0)
        if not -(2**63) <= value < 2**64:
            raise ValueError(digits)
    except ValueError:
        raise GoTemplateError(f"bad number syntax: {text!r}") from None
    return value


def string_value(text: str) -> str:
    """The value of a string in double quotes or backquotes. Raises GoTemplateError."""
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    return _unescape(text[1:-1], '"')


def character_value(text: str) -> int:
    """The code point of a character constant. Raises GoTemplateError."""
    value = _unescape(text[1:-1], "'")
    if len(value) != 1:
        raise GoTemplateError(f"malformed character constant: {text}")
    return ord(value)


def _unescape(text: str, quote: str) -> str:
    def replace(match: re.Match[str]) -> str:
        *codes, simple = match.groups()
        digits = next((code for code in codes if code), None)
        if digits is not None:
            value = int(digits, 8 if match[4] else 16)
            if value < 0x110000 and not 0xD800 <= value < 0xE000 and not (match[4] and value > 255):
                return chr(value)
        elif simple in _ESCAPES and simple != {'"': "'", "'": '"'}[quote]:
            return _ESCAPES[simple]
        raise GoTemplateError(f"invalid escape {match[0]!r}")

    return _ESCAPE.sub(replace, text)
