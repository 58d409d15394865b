"""A click group that imports a subcommand when it is first used, so that `--help` is instant."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """`locations` maps a command's name to module:attribute."""

    def __init__(self, *args: Any, locations: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._locations = locations

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._locations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._locations:
            return None
        module, attribute = self._locations[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command
