"""Options that several commands of the gateway share."""

from __future__ import annotations

import click

from gateway.engine_args import engine_args


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
    help="Serve a PEFT adapter beside the model, under its own name; may be given more than once. LMDeploy only.",
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
