"""`lensmith modelfile`: make, check and ship Ollama Modelfiles. Each command is imported when it runs."""

from __future__ import annotations

import click

from modelfiles.lazy_group import LazyGroup

# Command name -> module:attribute of the click command.
COMMANDS = {
    "inspect": "modelfiles.cli_check:inspect",
    "doctor": "modelfiles.cli_check:doctor",
    "generate": "modelfiles.cli_generate:generate",
    "lint": "modelfiles.cli_check:lint_command",
    "render": "modelfiles.cli_check:render",
    "diff": "modelfiles.cli_check:diff",
    "push": "modelfiles.cli_server:push_command",
    "verify": "modelfiles.cli_server:verify_command",
}


@click.group(cls=LazyGroup, places=COMMANDS)
def modelfile() -> None:
    """Make and check Ollama Modelfiles for a model folder."""
