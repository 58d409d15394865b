"""`lensmith plan serve`: how an engine would be started on a card, without the card."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.config.options import ENGINE_ARG
from gateway.planning.advice import Advice, advise
from gateway.planning.gpu import CARDS, Gpu, NoGpu, parse_gpu, query_gpus
from gateway.planning.other_servers import OTHER_SERVERS, serve_command
from gateway.planning.plan import make_engine_plan
from gateway.planning.types import EnginePlan, Workload
from modelfiles import counted
from modelfiles.cli.options import SIZE
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.hardware.gpus import GIB


@click.group()
def plan() -> None:
    """Say what a command would need, before it costs anything."""


@plan.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--gpu", metavar="|".join(CARDS) + "|GIB", help="The card.  [default: this machine's, its free memory]")
@click.option("--images", type=click.IntRange(0, 1000), default=1, show_default=True, help="Images in a request.")
@SIZE
@click.option("--concurrency", type=click.IntRange(1), help="Answers at once.  [default: what fits, up to 64]")
@click.option("--session-len", type=click.IntRange(1), help="Most tokens of prompt and answer.  [default: what fits]")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share the model.")
@click.option(
    "--for",
    "server",
    type=click.Choice(["lmdeploy", *OTHER_SERVERS]),
    default="lmdeploy",
    show_default=True,
    help="Another server than LMDeploy gets its command alone, with the image sizes and chat template of training.",
)
@ENGINE_ARG
@click.option("--json", "as_json", is_flag=True, help="Print the plan for programs.")
def serve(
    model_dir: Path,
    gpu: str | None,
    images: int,
    image_size: tuple[int, int],
    concurrency: int | None,
    session_len: int | None,
    tp: int,
    server: str,
    engine_args: dict[str, str],
    as_json: bool,
) -> None:
    """Say how LMDeploy should be started for MODEL_DIR, what fits, and which engine suits the load, without a GPU.

    Exits with 1 if something does not fit.
    """
    workload = Workload(images, image_size, concurrency, session_len)
    try:
        if server != "lmdeploy":
            click.echo(serve_command(ModelFolder.open(model_dir), server, workload, model_dir))
            return
        card = parse_gpu(gpu) if gpu else query_gpus()[0]
        engine_plan = make_engine_plan(ModelFolder.open(model_dir), card, workload, tp, engine_args)
    except NoGpu as error:
        raise click.ClickException(f"Name the card with --gpu: {error}.") from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    advice = advise(card, workload, int(engine_plan.value("max-batch-size")) or concurrency or 1)
    if as_json:
        click.echo(json.dumps({**as_json_object(engine_plan), "advice": asdict(advice)}, indent=1))
    else:
        show_engine_plan(engine_plan, model_dir, card, workload)
        show_advice(advice)
    raise SystemExit(1 if engine_plan.problems else 0)


def as_json_object(engine_plan: EnginePlan) -> dict[str, Any]:
    """The plan's fields, the cache's sizes in tokens, and the command's arguments."""
    value = asdict(engine_plan)
    if engine_plan.cache is not None:
        value["cache"] |= {"tokens": engine_plan.cache.tokens, "longest_session": engine_plan.cache.longest_session}
    return {**value, "arguments": engine_plan.arguments()}


def show_engine_plan(engine_plan: EnginePlan, model_dir: Path, card: Gpu, workload: Workload) -> None:
    console = Console(highlight=False)
    sizes = Table(show_header=False, box=None)
    size = "x".join(map(str, workload.image_size))
    rows = {
        "card": f"{card.name}, {card.free / GIB:.2f} GiB free"
        + (f", {engine_plan.tp} of them" if engine_plan.tp > 1 else ""),
        "weights": f"{engine_plan.weights / GIB:.2f} GiB" + (" on each" if engine_plan.tp > 1 else ""),
        "left by weights and CUDA": f"{engine_plan.free / GIB:.2f} GiB",
        "reserved for logits": f"{engine_plan.reserve / GIB:.2f} GiB",
        "image": f"{size} takes {engine_plan.image_tokens:,} tokens",
        "request": f"images: {workload.images}, and text: {engine_plan.request_tokens:,} tokens",
    }
    if engine_plan.cache is not None:
        size_gib = engine_plan.cache.tokens * engine_plan.token_bytes / GIB
        rows["key and value cache"] = (
            f"{engine_plan.cache.tokens:,} tokens, {size_gib:.2f} GiB: {counted(engine_plan.sessions, 'such request')}"
        )
        rows["largest image"] = f"{engine_plan.image_pixels:,} pixels" if engine_plan.image_pixels else "any"
    for name, text in rows.items():
        sizes.add_row(name, Text(text))
    console.print(sizes)
    if engine_plan.choices:
        flags = Table("flag", "value", "why", box=None)
        for choice in engine_plan.choices:
            value = {True: "on", False: "off"}.get(choice.value) if isinstance(choice.value, bool) else choice.value
            flags.add_row(choice.option, Text(str(value)), Text(choice.reason))
        console.print(flags)
        fractions = ", ".join(f"{share:g}: {tokens:,}" for share, tokens in engine_plan.by_fraction.items())
        console.print(Text(f"cache tokens by cache-max-entry-count: {fractions}"))
        command = ["lmdeploy", "serve", "api_server", str(model_dir), *engine_plan.arguments()]
        console.print(Text(shlex.join(command)), soft_wrap=True)
    for problem in engine_plan.problems:
        console.print(Text(f"Does not fit: {problem.what} Change: {problem.change}.", style="red"), soft_wrap=True)


def show_advice(advice: Advice) -> None:
    source = f" ({advice.source})" if advice.source else ""
    line = f"Engine for this card and load: {advice.engine}, because {advice.reason}{source}."
    Console(highlight=False).print(Text(line), soft_wrap=True)
