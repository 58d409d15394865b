"""`lensmith modelfile`: make, check and ship Ollama Modelfiles. Each command is imported when it runs."""

from __future__ import annotations

import importlib

import click

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


class LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup)
def modelfile() -> None:
    """Make and check Ollama Modelfiles for a model folder."""
