"""The one error of this package: a sentence for the user, which the command line prints without a traceback."""

from __future__ import annotations

import click


class FinetuneError(click.ClickException):
    """Something from outside (recipe, dataset, model folder, machine) cannot be used: what, where, what to do."""
