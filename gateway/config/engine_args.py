"""Options that a user gives to an engine: their names, and what may not be given."""

from __future__ import annotations

import math
from collections.abc import Mapping

# The gateway's own part of an engine's command line.
RESERVED = {"server-name", "server-port", "api-keys", "model-name", "host", "port", "served-model-name", "adapters"}


def engine_args(given: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """Option names as the engine spells them, without dashes in front, and their values as text. Raises ValueError."""
    arguments = {}
    for key, value in given.items():
        name = key.strip().lstrip("-").replace("_", "-")
        if not all(part.isalnum() for part in name.split("-")):
            raise ValueError(f"{key!r} is not the name of an engine's option, such as max-batch-size")
        if name in RESERVED:
            raise ValueError(f"{name} is the gateway's own part of the engine's command line")
        arguments[name] = as_text(value)
    return arguments


def as_text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def command_line(arguments: Mapping[str, str]) -> list[str]:
    """`true` is a flag without a value, and `false` none at all."""
    words = []
    for name, text in arguments.items():
        if text != "false":
            words += [f"--{name}"] if text == "true" else [f"--{name}", text]
    return words


def integer_option(given: Mapping[str, str], option: str, default: int) -> int:
    """The option's value, a positive number. Raises ValueError."""
    text = given.get(option)
    if text is None:
        return default
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise ValueError(f"{option} must be a positive whole number, not {text!r}.")
    return int(text)


def boolean_option(given: Mapping[str, str], option: str, default: bool) -> bool:
    text = given.get(option, str(default)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{option} must be true or false, not {text!r}.")
    return text == "true"


def fraction_option(given: Mapping[str, str], option: str) -> float | None:
    if option not in given:
        return None
    try:
        value = float(given[option])
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ValueError(f"{option} must be between 0 and 1, not {given[option]!r}.")
    return value
