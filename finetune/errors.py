"""The one error of this package: a sentence for the user, which the command line prints without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


class FinetuneError(click.ClickException):
    """Something from outside (recipe, dataset, model folder, machine) cannot be used: what, where, what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses meanwhile, full or not, becomes a FinetuneError that names the file, else `path`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise FinetuneError(f"{where} could not be written: {error.strerror or error}; make room there.") from None
