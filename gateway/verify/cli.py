"""`lensmith verify`: the same conversations through several engines, compared token by token."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.bench.cli import image_files
from gateway.engines.base import base_url
from gateway.verify.cases import Case, cases
from gateway.verify.compare import EngineComparison, compare_engines
from gateway.verify.greedy import GreedyAnswer, ask_all
from gateway.verify.record import record_results
from gateway.verify.servers import check_available, running
from modelfiles import counted
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.folder.provenance import PROVENANCE

REFERENCE = "transformers"
SHOWN_PROBLEMS = 5


def parse_engine(context: Any, parameter: Any, values: tuple[str, ...]) -> list[str]:
    for value in values:
        if value in ("transformers", "lmdeploy"):
            continue
        if not value.startswith(("http://", "https://")):
            raise click.BadParameter(f"'{value}' is not transformers, lmdeploy or a URL.")
        try:
            base_url(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return [REFERENCE, *dict.fromkeys(value for value in values if value != REFERENCE)]


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "engines",
    multiple=True,
    required=True,
    callback=parse_engine,
    metavar="lmdeploy|URL",
    help="What to compare with transformers, which always is the reference; as often as wanted.",
)
@click.option("--prompts", type=click.IntRange(1, 100_000), default=40, show_default=True, help="Picture prompts.")
@click.option(
    "--prompt", "questions", multiple=True, help="Question about the pictures instead of ours; several in turn."
)
@click.option(
    "--image-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pictures to ask about instead of drawn ones.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=24, show_default=True, help="Longest answer.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="Nats that rounding may explain: between log-probabilities on average, and between two tokens of which either "
    "may come first.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result to this file.")
def verify(
    model_dir: Path,
    engines: list[str],
    prompts: int,
    questions: tuple[str, ...],
    image_dir: Path | None,
    max_tokens: int,
    tolerance: float,
    json_file: Path | None,
) -> None:
    """Prove that engines answer as transformers does with the model folder MODEL_DIR.

    The same conversations, with pictures of many sizes, are answered greedily by each. Another chat template, image
    size or position encoding shows as other prompt tokens, other tokens or other log-probabilities. The result is kept
    in the folder's lensmith.json, if it has one. Exits with 1 if an engine differs. A URL's key is read from
    LENSMITH_API_KEY.
    """
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        folder = ModelFolder.open(model_dir)
        files = image_files(image_dir) if image_dir is not None else ()
        asked = cases(folder, prompts, questions, files)
    except (ModelFolderError, OSError) as error:
        raise click.ClickException(str(error)) from None
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise click.ClickException(f"The folder of {json_file} does not exist.")
    for engine in engines:  # before the reference is loaded and answers
        check_available(engine, folder)
    expected, compared = [], []
    for engine in engines:
        answers = answers_of(engine, folder, asked, max_tokens)
        if engine == REFERENCE:
            expected = answers
        else:
            compared.append(compare_engines(engine, asked, expected, answers, tolerance))
    if all(answer.error for answer in expected):
        raise click.ClickException(f"transformers answered nothing: {expected[0].error}")
    print_comparisons(compared, len(asked))
    results = [comparison_json(one, len(asked), max_tokens, tolerance) for one in compared]
    if json_file is not None:
        json_file.write_text(json.dumps({"model": str(folder.path), "verified": results}, indent=2) + "\n")
    try:
        kept = record_results(folder, results)
    except (ModelFolderError, OSError) as error:
        raise click.ClickException(f"The result is not kept: {error}") from None
    click.echo(f"kept in {folder.path / PROVENANCE}" if kept else f"not kept: the folder has no {PROVENANCE}")
    sys.exit(0 if all(one.ok for one in compared) else 1)


def answers_of(engine: str, folder: ModelFolder, asked: list[Case], max_tokens: int) -> list[GreedyAnswer]:
    console = Console(stderr=True)
    with console.status(f"{engine}: starting"), running(engine, folder) as server:
        console.print(f"{engine}: answering {counted(len(asked), 'prompt')}")
        return asyncio.run(ask_all(server.url, server.key, server.model, asked, max_tokens))


def comparison_json(one: EngineComparison, count: int, max_tokens: int, tolerance: float) -> dict[str, Any]:
    """The entry of a comparison in lensmith.json."""
    from datetime import datetime, timezone

    return {
        "engine": one.engine,
        "reference": REFERENCE,
        "versions": package_versions(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "prompts": count,
        "max_tokens": max_tokens,
        "tolerance": tolerance,
        "ok": one.ok,
        "checks": [{"name": check.name, "ok": check.ok, "seen": check.seen} for check in one.checks],
    }


def package_versions() -> dict[str, str]:
    from importlib import metadata

    installed = {}
    for package in ("transformers", "torch", "lmdeploy"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def print_comparisons(compared: list[EngineComparison], count: int) -> None:
    console = Console(soft_wrap=True)
    table = Table("engine", "answers", "prompts", "same", "tokens", "mean Δ", "most Δ")
    for one in compared:
        mean = one.mean_delta
        table.add_row(
            one.engine,
            f"{one.answers}/{count}",
            f"{one.same_prompts}/{one.answers}",
            f"{one.same_answers}" + (f" + {one.tied} ties" if one.tied else ""),
            f"{one.same_tokens}/{one.tokens}",
            "-" if mean is None else f"{mean:.4f}",
            "-" if mean is None else f"{max(one.deltas):.4f}",
        )
    console.print(table)
    for one in compared:
        for check in one.checks:
            mark, style = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
            console.print(Text(mark, style=style), Text(f"{one.engine}: {check.name}: {check.seen}"))
        for problem in one.problems[:SHOWN_PROBLEMS]:
            console.print(Text(f"     {problem}"))
        if len(one.problems) > SHOWN_PROBLEMS:
            console.print(f"     and {len(one.problems) - SHOWN_PROBLEMS} more")


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
