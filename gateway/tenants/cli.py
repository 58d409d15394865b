"""`lensmith keys`: make, list and revoke the API keys of a gateway."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from gateway.tenants.keys import KeyFileError, digest, new_secret, read_keys, write_keys
from gateway.tenants.limits import Key

file_option = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    default=Path("keys.json"),
    show_default=True,
    help="The key file.",
)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of `lensmith serve --keys FILE`."""


@keys.command()
@click.argument("name")
@file_option
@click.option("--model", "models", multiple=True, help="A model the key may use; again for more.  [default: all]")
@click.option("--requests-per-minute", type=click.IntRange(min=0), default=0, help="0: no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(min=0), default=0, help="Prompt and answer; 0: no limit.")
@click.option("--concurrency", type=click.IntRange(min=0), default=0, help="Requests at a time; 0: no limit.")
def add(
    name: str, path: Path, models: tuple[str, ...], requests_per_minute: int, tokens_per_minute: int, concurrency: int
) -> None:
    """Make a key called NAME and print it: the only time it can be seen, since the file holds its hash."""
    known = _read(path) if path.exists() else []
    if any(key.name == name for key in known):
        raise click.ClickException(f"{path} already has a key called '{name}'; choose another name or remove that one.")
    secret = new_secret()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    limits = (requests_per_minute, tokens_per_minute, concurrency)
    _write(path, [*known, Key(name, digest(secret), now, list(models), *limits)])
    click.echo(secret)


@keys.command("list")
@file_option
def list_(path: Path) -> None:
    """Show the keys' names and limits."""
    for key in _read(path):
        limits = [
            f"{limit} {what}"
            for limit, what in (
                (key.requests_per_minute, "requests/min"),
                (key.tokens_per_minute, "tokens/min"),
                (key.concurrency, "at a time"),
            )
            if limit
        ]
        click.echo(f"{key.name}  {key.created}  {', '.join(key.models) or 'all models'}  {', '.join(limits)}".rstrip())


@keys.command()
@click.argument("name")
@file_option
def remove(name: str, path: Path) -> None:
    """Revoke the key called NAME; a running gateway notices within a second."""
    known = _read(path)
    left = [key for key in known if key.name != name]
    if len(left) == len(known):
        raise click.ClickException(f"{path} has no key called '{name}'.")
    _write(path, left)


def _read(path: Path) -> list[Key]:
    try:
        return read_keys(path)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None


def _write(path: Path, keys: list[Key]) -> None:
    try:
        write_keys(path, keys)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from None
