"""`lensmith modelfile push | verify`: what talks to an Ollama server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from modelfiles.checks.lint_sources import local_path
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language.create_request import RequestError
from modelfiles.language.grammar import Command, ModelfileSyntaxError, parse
from modelfiles.ollama.plan import QUANTIZATIONS
from modelfiles.server.client import DEFAULT_SERVER, OllamaClient, OllamaError
from modelfiles.server.push import push, total_bytes
from modelfiles.server.verify import verify
from modelfiles.staging.stage import LOCK

SERVER = click.option(
    "--server",
    default=DEFAULT_SERVER,
    envvar="OLLAMA_HOST",
    show_default=True,
    show_envvar=True,
    help="Ollama's address.",
)


@click.command(name="push")
@click.argument("stage", type=click.Path(path_type=Path))
@click.argument("name")
@SERVER
@click.option(
    "--system-file", type=click.Path(path_type=Path), help="A system prompt, any characters; replaces SYSTEM."
)
@click.option("--quantize", default="", help="F32, F16, Q4_K_S, Q4_K_M or Q8_0.")
def push_command(stage: Path, name: str, server: str, system_file: Path | None, quantize: str) -> None:
    """Create the model NAME from STAGE, a folder that `generate` wrote, on an Ollama server."""
    commands = _read_stage(stage)
    quantize = (quantize or _lock_option(stage, "quantize")).upper()
    if quantize and quantize not in QUANTIZATIONS:
        raise click.ClickException(f"Ollama cannot quantize to {quantize}; it can to {', '.join(QUANTIZATIONS)}.")
    try:
        if system_file:
            system = system_file.read_bytes().decode("utf-8")
            commands = [command for command in commands if command.name != "system"] + [Command("system", system)]
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True
        ) as bar:
            task = bar.add_task("hashing", total=total_bytes(commands, stage))
            for status in push(OllamaClient(server), name, commands, stage, lambda n: bar.advance(task, n), quantize):
                bar.update(task, description=status[:40])
                bar.console.print(Text(status))
    except (OllamaError, RequestError, ModelFolderError, UnicodeDecodeError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f'created; try: ollama run {name} "What is in this picture?" ./picture.png')


@click.command(name="verify")
@click.argument("stage", type=click.Path(path_type=Path))
@click.argument("name")
@SERVER
@click.option("--json", "as_json", is_flag=True, help="Print the checks for programs.")
def verify_command(stage: Path, name: str, server: str, as_json: bool) -> None:
    """Prove on a live Ollama that the model NAME does what STAGE says. Exits with 1 if a check fails."""
    commands = _read_stage(stage)
    source = next(command.args for command in commands if command.name == "model")
    path = local_path(source, stage)
    try:
        folder = ModelFolder.open(path) if path and path.is_dir() else None
        checks = []
        for check in verify(OllamaClient(server), name, commands, folder):
            checks.append(check)
            if not as_json:
                mark, style = ("ok  ", "green") if check.ok else ("FAIL", "bold red")
                Console(soft_wrap=True).print(Text(mark, style=style), Text(f"{check.name}: {check.seen}"))
    except (OllamaError, ModelFolderError, ChatTemplateError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print(json.dumps([{"name": check.name, "ok": check.ok, "seen": check.seen} for check in checks]))
    sys.exit(0 if all(check.ok for check in checks) else 1)


def _read_stage(stage: Path) -> list[Command]:
    try:
        return parse((stage / "Modelfile").read_bytes())
    except OSError:
        raise click.ClickException(f"{stage} has no Modelfile; write one with `lensmith modelfile generate`.") from None
    except ModelfileSyntaxError as error:
        raise click.ClickException(f"{stage / 'Modelfile'}: {error}") from None


def _lock_option(stage: Path, name: str) -> str:
    try:
        return str(json.loads((stage / LOCK).read_text(encoding="utf-8"))["options"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
