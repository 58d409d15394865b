"""Command-line options that several commands of the gateway share, those of `Settings` among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from gateway.config.engine_args import engine_args
from gateway.config.settings import Settings


def comma_separated(value: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, tuple):  # the default
        return value
    return tuple(entry for entry in (part.strip() for part in value.split(",")) if entry)


def option_type(setting: dataclasses.Field[Any]) -> Any:
    if isinstance(setting.default, tuple):
        return comma_separated
    if isinstance(setting.default, int):
        return click.IntRange(min=setting.metadata["minimum"])
    return click.FloatRange(min=0, min_open=True)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for every field of Settings."""
    for setting in reversed(dataclasses.fields(Settings)):
        option = click.option(
            "--" + setting.name.replace("_", "-"),
            type=option_type(setting),
            default=setting.default,
            show_default=setting.default != (),
            metavar="HOST,..." if isinstance(setting.default, tuple) else None,
            help=setting.metadata["help"],
        )
        command = option(command)
    return command


def _adapters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    given = dict(value.partition("=")[::2] for value in values if all(value.partition("=")))
    if len(given) < len(values):
        raise click.BadParameter("write it as NAME=PATH, and each name once")
    return given


ADAPTERS = click.option(
    "--adapters",
    metavar="NAME=PATH",
    multiple=True,
    callback=_adapters,
    help="Serve a PEFT adapter beside the model, under its own name; may be given more than once.",
)


def _engine_args(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    given = dict(value.partition("=")[::2] for value in values if "=" in value)
    if len(given) < len(values):
        raise click.BadParameter("write it as KEY=VALUE, such as max-batch-size=8, and each key once")
    try:
        return engine_args(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


ENGINE_ARG = click.option(
    "--engine-arg",
    "engine_args",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_engine_args,
    help="Replace a flag of the engine, such as max-batch-size=8; may be given more than once.",
)
