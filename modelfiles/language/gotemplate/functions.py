"""The functions that a template can call: Go's own, and those that Ollama adds (template/template.go)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

_HTML = {'"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "\0": "\ufffd"}
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}
# JSON schema's type -> TypeScript's (api/types.go, ToTypeScriptType).
_TYPESCRIPT = {
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean", "array": "any[]",
    "object": "Record<string, any>", "null": "null",
}  # fmt: skip


def truth(value: Any) -> bool:
    """Go's truth: false for zero values and empty containers."""
    return bool(value)


def to_text(value: Any) -> str:
    """How a value prints. API objects print as JSON in Ollama: compact, with <, > and & escaped as Go does."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return go_json(value)
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, complex):
        return f"({_float_text(value.real)}{'' if value.imag < 0 else '+'}{_float_text(value.imag)}i)"
    return str(value)


def go_json(value: Any) -> str:
    """JSON as Go's encoding/json writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _float_text(value: float) -> str:
    """Go's %v: the shortest digits, with an exponent outside [1e-4, 1e6) that has at least two digits."""
    shortest = next(text for text in (f"{value:.{precision}e}" for precision in range(18)) if float(text) == value)
    exponent = int(shortest.partition("e")[2])
    return repr(value).removesuffix(".0") if -4 <= exponent < 6 else shortest


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    end = len(value) if end is None else end
    if not 0 <= start <= end <= len(value):
        raise LookupError(f"index out of range: {start}")
    return value[start:end]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    if re.search(r"%[^svdq%]", form):
        raise ValueError(f"printf {form!r} is not supported")
    return form.replace("%v", "%s").replace("%d", "%s").replace("%q", '"%s"') % tuple(map(to_text, values))


def _print(*values: Any) -> str:
    """Go's Sprint: a blank between two values of which neither is a string."""
    text = ""
    for index, value in enumerate(values):
        blank = index and not isinstance(value, str) and not isinstance(values[index - 1], str)
        text += (" " if blank else "") + to_text(value)
    return text


def _println(*values: Any) -> str:
    return " ".join(map(to_text, values)) + "\n"


def _call(*_: Any) -> Any:
    raise ValueError("no value of Ollama's is a function")


def _typescript(value: Any = None, *_: Any) -> str:
    if not isinstance(value, dict):
        return "any"
    if value.get("anyOf"):
        return " | ".join(_typescript(item) for item in value["anyOf"])
    types = value.get("type") or []
    types = types if isinstance(types, list) else [types]
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in types) or "any"


def _escaped(table: dict[str, str]) -> Callable[..., str]:
    return lambda *values: "".join(table.get(character, character) for character in _print(*values))


def _js(*values: Any) -> str:
    text = _escaped(_JS)(*values)
    return "".join(c if c >= " " else f"\\u{ord(c):04X}" for c in text)


def _date(days: int) -> Callable[..., str]:
    return lambda *_: (datetime.now() - timedelta(days=days)).strftime("%Y-%m-%d")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: first in others,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "not": lambda value: not truth(value),
    "and": lambda *values: values[-1],
    "or": lambda *values: values[-1],
    "len": lambda value: len(value.encode()) if isinstance(value, str) else len(value or []),
    "slice": _slice,
    "index": _index,
    "call": _call,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "html": _escaped(_HTML),
    "js": _js,
    "urlquery": lambda *values: quote(_print(*values), safe="-_.~").replace("%20", "+"),
    "json": go_json,
    "currentDate": _date(0),
    "yesterdayDate": _date(1),
    "toTypeScriptType": _typescript,
}
