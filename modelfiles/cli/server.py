"""`lensmith modelfile push | verify`: what talks to an Ollama server."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from modelfiles.checks.lint_sources import local_path
from modelfiles.cli.options import check_new_name, read_system
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language.create_request import RequestError
from modelfiles.language.grammar import Command, ModelfileSyntaxError, parse
from modelfiles.ollama.plan import QUANTIZATIONS
from modelfiles.server.answers import (
    AnswerComparison,
    Reference,
    ReferenceServerError,
    ask_ollama,
    exact_match,
    gateway_reference,
)  # fmt: skip
from modelfiles.server.client import DEFAULT_SERVER, OllamaClient, OllamaError
from modelfiles.server.push import push, total_bytes
from modelfiles.server.questions import QuestionError, read_questions
from modelfiles.server.verify import Check, verify
from modelfiles.staging.stage import stage_option

SERVER = click.option(
    "--server",
    default=DEFAULT_SERVER,
    envvar="OLLAMA_HOST",
    show_default=True,
    show_envvar=True,
    help="Ollama's address.",
)
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Rows (ShareGPT or OpenAI messages) to ask there and of the reference; the last turn is the right answer.",
)
LIMIT = click.option("--limit", type=click.IntRange(1), default=40, show_default=True, help="Rows of --data to ask.")
REFERENCE = click.option(
    "--reference",
    default="",
    help="URL of an OpenAI API that serves the same model.  [default: `lensmith serve` is started for it]",
)
# What any of these commands can meet that is no fault of Lensmith's.
FAULTS = (
    OllamaError, RequestError, ModelFolderError, ChatTemplateError, QuestionError, ReferenceServerError, OSError,
    ValueError,
)  # fmt: skip


@click.command(name="push")
@click.argument("stage", type=click.Path(path_type=Path))
@click.argument("name", callback=check_new_name)
@SERVER
@click.option(
    "--system-file", type=click.Path(path_type=Path), help="A system prompt, any characters; replaces SYSTEM."
)
@click.option("--quantize", default="", help="F32, F16, Q4_K_S, Q4_K_M or Q8_0.")
def push_command(stage: Path, name: str, server: str, system_file: Path | None, quantize: str) -> None:
    """Create the model NAME from STAGE, a folder that `generate` wrote, on an Ollama server."""
    commands = read_stage(stage)
    quantize = (quantize or stage_option(stage, "quantize")).upper()
    if quantize and quantize not in QUANTIZATIONS:
        raise click.ClickException(f"Ollama cannot quantize to {quantize}; it can to {', '.join(QUANTIZATIONS)}.")
    try:
        if system_file:
            system = read_system(system_file)
            commands = [command for command in commands if command.name != "system"] + [Command("system", system)]
        push_with_progress(OllamaClient(server), name, commands, stage, quantize)
    except FAULTS as error:
        raise click.ClickException(str(error)) from None
    click.echo(f'created; try: ollama run {name} "What is in this picture?" ./picture.png')


@click.command(name="verify")
@click.argument("stage", type=click.Path(path_type=Path))
@click.argument("name")
@SERVER
@DATA
@LIMIT
@REFERENCE
@click.option("--json", "as_json", is_flag=True, help="Print the checks for programs.")
def verify_command(
    stage: Path, name: str, server: str, data: Path | None, limit: int, reference: str, as_json: bool
) -> None:
    """Prove on a live Ollama that the model NAME does what STAGE says. Exits with 1 if a check fails.

    With --data the answers are proven too: without it a model of the same shape with other weights passes.
    """
    try:
        checks = run_checks(OllamaClient(server), name, stage, data, limit, reference, as_json)
    except FAULTS as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print(json.dumps([{"name": check.name, "ok": check.ok, "seen": check.seen} for check in checks]))
    sys.exit(0 if all(check.ok for check in checks) else 1)


def push_with_progress(client: OllamaClient, name: str, commands: list[Command], stage: Path, quantize: str) -> None:
    """Pushes with a bar of bytes. Raises what `push` raises."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("hashing", total=total_bytes(commands, stage))
        for status in push(client, name, commands, stage, lambda n: bar.advance(task, n), quantize):
            bar.update(task, description=status[:40])
            bar.console.print(Text(status))


def run_checks(
    client: OllamaClient, name: str, stage: Path, data: Path | None, limit: int, reference: str, quiet: bool = False
) -> list[Check]:
    """Every check of a stage, printed as it is done unless `quiet`. Raises FAULTS."""
    commands = read_stage(stage)
    source = next(command.args for command in commands if command.name == "model")
    path = local_path(source, stage)
    folder = ModelFolder.open(path) if path and path.is_dir() else None
    images = stage_option(stage, "images_per_request")
    checks = []
    for check in verify(client, name, commands, folder, int(images) if images.isdecimal() else 8):
        checks.append(check)
        show_check(check, quiet)
    if data:
        if folder is None and not reference:
            raise click.ClickException("the stage has no model to compare with; give --reference URL.")
        checks.append(check_answers(client, name, data, limit, reference, folder, quiet))
        show_check(checks[-1], quiet)
    elif not quiet:
        click.echo("answers: not asked; --data FILE proves them, too")
    return checks


def show_check(check: Check, quiet: bool) -> None:
    if not quiet:
        mark, style = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
        Console(soft_wrap=True).print(Text(mark, style=style), Text(f"{check.name}: {check.seen}"))


def check_answers(
    client: OllamaClient, name: str, data: Path, limit: int, reference: str, folder: ModelFolder | None, quiet: bool
) -> Check:
    """Asks the same questions there and of the reference. Raises FAULTS."""
    questions = read_questions(data, limit)
    source: AbstractContextManager[Reference]
    source = nullcontext(Reference(reference)) if reference or folder is None else gateway_reference(folder.path)
    there: list[bool] = []
    known: list[bool] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with source as other, Progress(*columns, transient=True, disable=quiet) as bar:
        for question in bar.track(questions, description="asking"):
            there.append(exact_match(ask_ollama(client, name, question), question.label))
            known.append(exact_match(other.ask(question), question.label))
    compared = AnswerComparison(there, known)
    seen = f"{sum(there)} of {len(there)} right in Ollama, {sum(known)} through {reference or 'the gateway'}"
    return Check("answers are as good", not compared.worse, f"{seen} (p = {compared.p:.2g} for no loss)")


def read_stage(stage: Path) -> list[Command]:
    """The stage's Modelfile. Raises click.ClickException."""
    try:
        return parse((stage / "Modelfile").read_bytes())
    except OSError:
        raise click.ClickException(f"{stage} has no Modelfile; write one with `lensmith modelfile generate`.") from None
    except ModelfileSyntaxError as error:
        raise click.ClickException(f"{stage / 'Modelfile'}: {error}") from None
