"""`lensmith modelfile`: make, check and ship Ollama Modelfiles. Each command is imported when it runs."""

from __future__ import annotations

import click

from modelfiles.cli.lazy_group import LazyGroup

# Command name -> module:attribute of the click command.
COMMANDS = {
    "inspect": "modelfiles.cli.check:inspect",
    "doctor": "modelfiles.cli.check:doctor",
    "generate": "modelfiles.cli.generate:generate",
    "lint": "modelfiles.cli.check:lint_command",
    "render": "modelfiles.cli.check:render",
    "diff": "modelfiles.cli.check:diff",
    "install": "modelfiles.cli.install:install",
    "push": "modelfiles.cli.server:push_command",
    "verify": "modelfiles.cli.server:verify_command",
}


@click.group(cls=LazyGroup, locations=COMMANDS)
def modelfile() -> None:
    """Make and check Ollama Modelfiles for a model folder."""
