"""`lensmith bench`: puts load on an OpenAI-compatible endpoint and reports rates and latencies."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from yarl import URL

from gateway.bench.figures import LATENCIES, figures
from gateway.bench.load import Endpoint, GeneratorDied, LoadLevel, processes_for, run_level
from gateway.bench.request_set import MEDIA_TYPES, RequestSet
from gateway.engines.base import EngineUnreachable, base_url, fetch_models

# The endpoint's key; in the environment, because a command line is public.
KEY = "LENSMITH_API_KEY"
MAX_SIDE = 20_000
# From this share of a core on, a load process may be what limits the figures.
BUSY = 0.8
OPEN_LOOP_SECONDS = 30


def parse_numbers(kind: type[int] | type[float]) -> Callable[[Any, Any, str | None], list[Any]]:
    """A click callback for a list such as 1,4,16."""

    def parse(context: Any, parameter: Any, value: str | None) -> list[Any]:
        try:
            listed = [kind(part) for part in value.split(",")] if value else []
        except ValueError:
            raise click.BadParameter(f"'{value}' is not a list of numbers such as 1,4,16.") from None
        if any(not 0 < number < 1e5 for number in listed):
            raise click.BadParameter("every number must be above 0 and below 100000.")
        return listed

    return parse


def parse_size(context: Any, parameter: Any, value: str) -> tuple[int, int]:
    width, _, height = value.partition("x")
    if not (width.isdigit() and height.isdigit() and 0 < int(width) <= MAX_SIDE and 0 < int(height) <= MAX_SIDE):
        raise click.BadParameter(f"'{value}' is not a size such as 768x768, in pixels.")
    return int(width), int(height)


def parse_goodput(context: Any, parameter: Any, values: tuple[str, ...]) -> dict[str, float]:
    targets = {}
    for value in values:
        name, _, milliseconds = value.partition(":")
        try:
            targets[name] = float(milliseconds)
        except ValueError:
            targets[name] = 0.0
        if name not in LATENCIES or targets[name] <= 0:
            raise click.BadParameter(f"'{value}' is not a target such as ttft:500 ({', '.join(LATENCIES)}; in ms).")
    return targets


def parse_extra(context: Any, parameter: Any, value: str) -> dict[str, Any]:
    try:
        fields = json.loads(value)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise click.BadParameter("it must be a JSON object, such as '{\"ignore_eos\": true}'.")
    return fields


@click.command()
@click.argument("url")
@click.option("--model", help="Model to ask for.  [default: the first one the endpoint lists]")
@click.option(
    "--concurrency", callback=parse_numbers(int), help="Requests at once; several levels as 1,4,16.  [default: 1,4,16]"
)
@click.option(
    "--rate",
    callback=parse_numbers(float),
    help="Instead: requests begun a second, however many are unanswered, as 2,4,8.",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    help="Requests a level.  [default: 8 times the concurrency and at least 16; 30 seconds' worth with --rate]",
)
@click.option("--warmup", type=click.IntRange(0), help="Requests before each level, not counted.  [default: as many "
              "as run at once]")  # fmt: skip
@click.option("--image-size", callback=parse_size, default="768x768", show_default=True, help="Of the images drawn.")
@click.option(
    "--image-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Send the PNG, JPEG and WebP files of this folder instead, in turn.",
)
@click.option("--images", type=click.IntRange(0, 64), default=1, show_default=True, help="Images a request.")
@click.option("--prompt", default="Describe the picture.", show_default=True, help="Text of every request.")
@click.option("--prompt-words", type=click.IntRange(0, 1_000_000), default=0, help="Random words before the prompt.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Longest answer.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Stream answers; without: no TTFT and ITL.")
@click.option(
    "--extra", callback=parse_extra, default="{}", help="JSON fields for every body, as '{\"ignore_eos\": true}'."
)
@click.option(
    "--goodput",
    callback=parse_goodput,
    multiple=True,
    metavar="NAME:MS",
    help="Latency target in ms (ttft:500, itl:50, e2e:5000); req/s that keep to all of them are counted.",
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds.")
@click.option("--processes", type=click.IntRange(1, 64), help="Processes that make the load.  [default: by the load]")
@click.option("--seed", type=int, default=0, show_default=True, help="Other images and words.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report to this file.")
@click.option("--png", "png_file", type=click.Path(path_type=Path), help="Draw it in this file (needs matplotlib).")
def bench(
    url: str,
    model: str | None,
    concurrency: list[int],
    rate: list[float],
    requests: int | None,
    warmup: int | None,
    image_size: tuple[int, int],
    image_dir: Path | None,
    images: int,
    prompt: str,
    prompt_words: int,
    max_tokens: int,
    stream: bool,
    extra: dict[str, Any],
    goodput: dict[str, float],
    timeout: float,
    processes: int | None,
    seed: int,
    json_file: Path | None,
    png_file: Path | None,
) -> None:
    """Put load on the OpenAI-compatible endpoint at URL and measure its answers.

    A key is read from LENSMITH_API_KEY. Requests per second, tokens per second, and the time to the first token (TTFT),
    between tokens (ITL) and to the end (e2e), a level a line.
    """
    if concurrency and rate:
        raise click.UsageError("Give --concurrency or --rate, not both.")
    if png_file is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("--png needs matplotlib: pip install matplotlib")
    for file in (json_file, png_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise click.ClickException(f"The folder of {file} does not exist.")
    try:
        base, key = base_url(url), os.environ.get(KEY)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    request_set = RequestSet(
        model=choose_model(base, key, model),
        prompt=prompt,
        max_tokens=max_tokens,
        stream=stream,
        images=images,
        image_size=image_size,
        image_files=image_files(image_dir) if image_dir is not None and images else (),
        prompt_words=prompt_words,
        extra=extra,
    )
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    endpoint = Endpoint(str(base / "v1/chat/completions"), headers, timeout)
    report: dict[str, Any] = {"url": str(base), "model": request_set.model, "max_tokens": max_tokens, "stream": stream}
    report |= {"images": images, "image_size": None if image_dir else list(image_size), "prompt_words": prompt_words}
    report |= {"extra": extra, "goodput_ms": goodput, "levels": []}
    for level in make_levels(concurrency or [1, 4, 16], rate, requests, warmup, seed):
        row = run_with_progress(endpoint, request_set, level, processes or processes_for(level), goodput)
        report["levels"].append(row)
        if json_file is not None:
            json_file.write_text(json.dumps(report, indent=1) + "\n")
    Console().print(table(report))
    for line in remarks(report):
        click.echo(line, err=True)
    if png_file is not None:
        from gateway.bench.chart import draw_chart

        draw_chart(report, png_file)
    if not any(row["ok"] for row in report["levels"]):
        raise click.ClickException("No request was answered.")


def choose_model(base: URL, key: str | None, model: str | None) -> str:
    """The model to ask for. Raises ClickException if the endpoint does not answer."""

    async def list_models() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await fetch_models(session, base, key)

    if model is not None:
        return model
    try:
        return asyncio.run(list_models())[0]
    except EngineUnreachable as error:
        raise click.ClickException(f"There is nothing to measure: {error}.") from None


def image_files(folder: Path) -> tuple[Path, ...]:
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in MEDIA_TYPES and path.is_file()))
    if not files:
        raise click.ClickException(f"{folder} has no {', '.join(sorted(MEDIA_TYPES))} file.")
    return files


def make_levels(
    concurrency: list[int], rate: list[float], requests: int | None, warmup: int | None, seed: int
) -> list[LoadLevel]:
    levels: list[LoadLevel] = []
    for index, load in enumerate(rate or concurrency):
        at_once = max(1, round(load))
        count = requests or (max(16, 8 * at_once) if not rate else max(1, round(load * OPEN_LOOP_SECONDS)))
        levels.append(
            LoadLevel(
                requests=count,
                warmup=at_once if warmup is None else warmup,
                concurrency=0 if rate else min(int(load), count),
                rate=load if rate else 0.0,
                seed=(seed * 1000 + index) * 1_000_000_007,
            )
        )
    return levels


def run_with_progress(
    endpoint: Endpoint, request_set: RequestSet, level: LoadLevel, processes: int, goodput: dict[str, float]
) -> dict[str, Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(level.name, total=level.requests)

        def report_progress(phase: str, done: int) -> None:
            bar.update(task, description=f"{level.name}: {phase}", completed=done)

        try:
            result = run_level(endpoint, request_set, level, processes, report_progress)
        except GeneratorDied as error:
            raise click.ClickException(str(error)) from None
    row = figures(level, result, goodput)
    if not console.is_terminal:
        click.echo(f"{level.name}: {row['ok']} of {row['requests']} in {row['seconds']:.1f} s", err=True)
    return row


def table(report: dict[str, Any]) -> Table:
    """The report as a table; times are p50 / p99 in milliseconds."""
    shown = Table(title=f"{report['model']} at {report['url']}", title_justify="left", caption="times: p50 / p99 in ms")
    headings = ["at once" if report["levels"][0]["concurrency"] else "req/s begun", "answers", "req/s", "tok/s"]
    headings += ["TTFT", "ITL", "e2e"] + (["goodput req/s"] if report["goodput_ms"] else [])
    for heading in headings:
        shown.add_column(heading, justify="right")
    for row in report["levels"]:
        cells = [f"{row['concurrency'] or row['rate']:g}", f"{row['ok']}/{row['requests']}"]
        cells += [f"{row['requests_per_second']:.2f}", f"{row['tokens_per_second']:,.0f}"]
        for name in LATENCIES:
            times = row[f"{name}_ms"]
            cells.append(f"{times['p50']:,.0f} / {times['p99']:,.0f}" if times else "-")
        if report["goodput_ms"]:
            cells.append(f"{row['goodput_per_second']:.2f}")
        shown.add_row(*cells)
    return shown


def remarks(report: dict[str, Any]) -> list[str]:
    """Warnings that belong to the figures, a sentence each."""
    lines = []
    for row in report["levels"]:
        load = f"At {row['concurrency']} at once" if row["concurrency"] else f"At {row['rate']:g} req/s"
        if row["errors"]:
            counted = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(row["errors"].items()))
            lines.append(f"{load}, requests failed: {counted}.")
        if row["generator_core_share"] > BUSY:
            lines.append(
                f"{load}, the load generator used {row['generator_core_share']:.0%} of a core and may be what limits "
                "the figures; give it more --processes."
            )
        if row["distinct_bodies"] < row["requests"]:
            lines.append(f"{load}, only {row['distinct_bodies']} bodies were held in memory; they were sent again.")
    return lines
