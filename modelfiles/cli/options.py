"""Options that several `lensmith modelfile` commands share."""

from __future__ import annotations

from pathlib import Path

import click

from modelfiles.ollama.names import is_ollama_name, suggest_ollama_name
from modelfiles.ollama.versions import NEWEST, Version, parse_version, version_text


def _version(ctx: click.Context, param: click.Parameter, value: str) -> Version:
    try:
        return parse_version(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _size(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 100_000 and 0 < int(height) < 100_000):
        raise click.BadParameter(f"{value!r} is not a size in pixels; write it like 1280x720")
    return int(width), int(height)


def check_new_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """For `callback`: a name that Ollama will take, before anything is made or sent for it."""
    if not is_ollama_name(value):
        raise click.BadParameter(
            f"Ollama takes no {value!r}: letters of a to z, digits, dots, dashes and underlines, with a :tag if you "
            f"like, such as {suggest_ollama_name(value)}"
        )
    return value


def read_system(path: Path) -> str:
    """A system prompt from a UTF-8 file without the line end that editors put at its end.

    Raises OSError and UnicodeDecodeError.
    """
    return path.read_bytes().decode("utf-8").removesuffix("\n").removesuffix("\r")


VERSION = click.option(
    "--ollama", callback=_version, default=version_text(NEWEST), show_default=True, help="The version it is for."
)
IMAGES = click.option("--images-per-request", type=click.IntRange(0, 1000), default=8, show_default=True)
SIZE = click.option("--image-size", callback=_size, default="1024x1024", show_default=True, help="In pixels.")
