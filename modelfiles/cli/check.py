"""`lensmith modelfile inspect | doctor | lint | diff | render`: what looks and never writes."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelfiles import counted
from modelfiles.checks.context import Context
from modelfiles.checks.doctor import check_folder
from modelfiles.checks.finding import Finding, exit_code
from modelfiles.checks.lint import lint
from modelfiles.checks.lint_sources import local_path
from modelfiles.cli.options import IMAGES, SIZE, VERSION
from modelfiles.folder.chat_template import ChatTemplateError
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language import gotemplate
from modelfiles.language.create_request import FLOATS, INTEGERS, RequestError, parameter_value
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.language.grammar import Command, ModelfileSyntaxError, parse
from modelfiles.ollama.budget import image_tokens
from modelfiles.ollama.chat_facts import read_chat_facts
from modelfiles.ollama.plan import ModelfilePlanError, choose_architecture, stop_tokens
from modelfiles.ollama.prompts import CASES, Conversation, render_model, render_renderer, render_template
from modelfiles.ollama.versions import Version, version_text


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@SIZE
@VERSION
def inspect(model_dir: Path, image_size: tuple[int, int], ollama: Version) -> None:
    """Show what Ollama will make of MODEL_DIR."""
    try:
        folder = ModelFolder.open(model_dir)
        facts = read_chat_facts(folder)
        architecture = choose_architecture(folder, facts)
        stops = [text for _, text, _ in stop_tokens(folder, facts)]
    except (ModelFolderError, ChatTemplateError, ModelfilePlanError) as error:
        raise click.ClickException(str(error)) from None
    kind = "thinking" if facts.thinking else "instruct"
    width, height = image_size
    rows = {
        "family": f"{architecture.name} ({folder.architecture})",
        "routes": ", ".join(architecture.routes),
        "Ollama": f"{version_text(architecture.since)} or later"
        if architecture.since
        else f"{version_text(architecture.gguf_since)} or later, by GGUF",
        "context": f"{folder.max_position_embeddings} tokens",
        "image": f"{width}x{height} takes {image_tokens(architecture, folder, image_size, ollama)} tokens",
        "chat template": f"{folder.chat_template_and_source[1]}, {kind}",
        "renderer": " / ".join(architecture.renderers.get(kind, ("none",))),
        "stops": ", ".join(stops),
        "default system": repr(facts.default_system) if facts.default_system else "none",
        "weights": f"{counted(len(folder.tensors), 'tensor')} in {counted(len(folder.shards), 'file')}",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for trap in architecture.traps:
        table.add_row("beware", Text(trap))
    Console().print(table)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@IMAGES
@SIZE
@VERSION
@click.option("--route", type=click.Choice(["safetensors", "gguf"]), default="safetensors", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the findings for programs.")
def doctor(
    path: Path, images_per_request: int, image_size: tuple[int, int], ollama: Version, route: str, as_json: bool
) -> None:
    """Say what in PATH, a model folder or a Modelfile, breaks in Ollama. Exits with 0, 1 (warnings) or 2 (errors)."""
    findings: list[Finding] = []
    commands: list[Command] = []
    folder: Path | None = path
    modelfile = path / "Modelfile" if path.is_dir() else path
    if modelfile.is_file():
        commands, findings = _lint(modelfile, Context(ollama, images_per_request, image_size))
        sources = [local_path(command.args, modelfile.parent) for command in commands if command.name == "model"]
        if not path.is_dir():
            folder = next((source for source in sources if source and source.is_dir()), None)
        if any(source and source.suffix == ".gguf" for source in sources):
            folder = None  # the weights are the GGUF files, which lint has checked
    elif path.is_dir() and _has_only_gguf(path):
        findings = [found for found in lint(b"FROM .\n", path, Context(ollama))[1] if found.rule.startswith("MF5")]
    if folder is not None and not _has_only_gguf(folder):
        of_folder = check_folder(folder, route, ollama)
        known = {finding.rule for finding in of_folder}
        findings = [*of_folder, *(finding for finding in findings if finding.rule not in known)]
    _report(commands, findings, as_json)


@click.command(name="lint")
@click.argument("modelfile", type=click.Path(path_type=Path))
@IMAGES
@SIZE
@VERSION
@click.option("--json", "as_json", is_flag=True, help="Print commands and findings for programs.")
def lint_command(
    modelfile: Path, images_per_request: int, image_size: tuple[int, int], ollama: Version, as_json: bool
) -> None:
    """Check MODELFILE as Ollama reads it, with line and column. Exits with 0, 1 (warnings) or 2 (errors)."""
    commands, findings = _lint(modelfile, Context(ollama, images_per_request, image_size))
    _report(commands, findings, as_json)


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def diff(first: Path, second: Path) -> None:
    """Compare what two Modelfiles mean, not how they are written. Exits with 1 if they differ."""
    one, two = (_commands(path) for path in (first, second))
    lines = list(difflib.unified_diff(_listing(one), _listing(two), str(first), str(second), lineterm="", n=1))
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(Text(line, style={"-": "red", "+": "green"}.get(line[:1], "")))
    sys.exit(1 if lines else 0)


@click.command()
@click.argument("modelfile", type=click.Path(path_type=Path))
@click.option(
    "--messages", type=click.Path(path_type=Path), help="A JSON file: a list of messages, or messages and tools."
)
def render(modelfile: Path, messages: Path | None) -> None:
    """Show the prompt Ollama will send beside the model's own chat template. Exits with 1 if they differ."""
    commands = _commands(modelfile)
    source = next(command.args for command in commands if command.name == "model")
    path = local_path(source, modelfile.parent)
    conversations = [_read_conversation(messages)] if messages else list(CASES)
    try:
        sent = [render_modelfile(commands, conversation) for conversation in conversations]
        folder = ModelFolder.open(path) if path and path.is_dir() else None
        expected = render_model(folder, conversations) if folder else None
    except (GoTemplateError, ModelFolderError, ChatTemplateError) as error:
        raise click.ClickException(str(error)) from None
    console = Console(soft_wrap=True, highlight=False)
    differs = 0
    for index, (conversation, prompt) in enumerate(zip(conversations, sent, strict=True)):
        wanted = expected[index] if expected else None
        if wanted is None:
            why = "the chat template refuses this conversation" if expected else "no model folder to compare with"
            console.print(Text(f"{conversation.name}: {why}"))
            console.print(Text(prompt))
        elif prompt == wanted:
            console.print(Text(f"{conversation.name}: equal", style="green"))
            if messages:
                console.print(Text(prompt))
        else:
            differs += 1
            console.print(Text(f"{conversation.name}: differs (chat template -, Ollama +)", style="bold red"))
            console.print(coloured_diff(wanted, prompt))
    sys.exit(1 if differs else 0)


def render_modelfile(commands: list[Command], conversation: Conversation) -> str:
    """The prompt for a conversation: MESSAGEs come first, and SYSTEM stands in for a missing system message.

    Raises GoTemplateError.
    """
    values = {command.name: command.args for command in commands}
    history = [command.args.partition(": ") for command in commands if command.name == "message"]
    messages = [{"role": role, "content": content} for role, _, content in history] + conversation.messages
    if values.get("system") and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": values["system"]}, *messages]
    conversation = Conversation(conversation.name, messages, conversation.tools)
    if "renderer" in values:
        return render_renderer(values["renderer"], conversation)
    return render_template(gotemplate.parse_template(values.get("template", "{{ .Prompt }}")), conversation)


def coloured_diff(expected: str, sent: str) -> Text:
    """What must go in red and what was added in green, character by character; line ends shown as a sign."""
    text = Text()
    for operation, a, b, c, d in difflib.SequenceMatcher(None, expected, sent, autojunk=False).get_opcodes():
        if operation == "equal":
            text.append(expected[a:b])
            continue
        for part, style, sign in ((expected[a:b], "white on red", "-"), (sent[c:d], "black on green", "+")):
            if part:
                text.append(f"[{sign}" + part.replace("\n", "⏎\n") + "]", style=style)
    return text


def _has_only_gguf(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


def _lint(modelfile: Path, context: Context) -> tuple[list[Command], list[Finding]]:
    commands, findings = lint(_read(modelfile), modelfile.parent, context)
    return commands, [replace(finding, file=str(modelfile)) for finding in findings]


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise click.ClickException(
            f"{path} is a folder: name the Modelfile in it, or check a model's folder with `lensmith modelfile doctor`."
        )
    try:
        if path.stat().st_size > 10_000_000:
            raise click.ClickException(f"{path} has over 10 MB; that is no Modelfile.")
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}.") from None


def _commands(path: Path) -> list[Command]:
    try:
        return parse(_read(path))
    except ModelfileSyntaxError as error:
        raise click.ClickException(f"{path}: {error}") from None


def _listing(commands: list[Command]) -> list[str]:
    """One line per command and further line of its value, in an order that means nothing to Ollama."""
    single = {
        command.name: command for command in commands if command.name not in ("stop", "message", "license", "model")
    }
    kept = [c for c in commands if c.name in ("stop", "message", "license", "model") or single[c.name] is c]
    ordered = sorted(kept, key=lambda command: (command.name != "model", command.name))
    return [f"{command.name.upper()} {line}" for command in ordered for line in _comparable(command).split("\n")]


def _comparable(command: Command) -> str:
    """The value, a number as itself: 0.70 is 0.7."""
    try:
        return f"{parameter_value(command):g}" if command.name in (*INTEGERS, *FLOATS) else command.args
    except RequestError:
        return command.args


def _read_conversation(path: Path) -> Conversation:
    try:
        value: Any = json.loads(_read(path))
        messages = value["messages"] if isinstance(value, dict) else value
        tools = value.get("tools") if isinstance(value, dict) else None
        for message in messages:
            if not isinstance(message["role"], str) or not isinstance(message.get("content", ""), str):
                raise TypeError("role and content must be strings")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise click.ClickException(
            f'{path} must hold messages like [{{"role": "user", "content": "...", "images": 1}}]: {error}.'
        ) from None
    return Conversation(path.name, messages, tools)


def _report(commands: list[Command], findings: list[Finding], as_json: bool) -> None:
    if as_json:
        listed = [{"name": command.name, "args": command.args} for command in commands]
        print(json.dumps({"commands": listed, "findings": [f.as_json() for f in findings]}, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(str(finding))
        click.echo(
            f"{counted(len(findings), 'finding')}; docs/modelfile-rules.md explains them" if findings else "no findings"
        )
    sys.exit(exit_code(findings))
